import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.omega import Omega
from scoring.metrics import LabelledCells
from scoring.table import conform
from tests.tables import make_table


def both(cells, values, weights):
    return Omega(values, cells).cells(weights), cells.values(weights @ values)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.booleans())
@settings(max_examples=20, deadline=None)
def test_the_official_metrics_come_out(seed, per_cell, coarse):
    """Whatever the numbers of clips, so that the limit of pAUC falls between normals; and with ties."""
    rng = np.random.default_rng(seed)
    table = make_table(("fan", "pump"), per_cell, 2, seed=seed % 1000)
    table = table.filter(pa.array(rng.random(table.num_rows) < (0.9 if per_cell > 3 else 1)))
    cells = LabelledCells.from_table(table)
    values = rng.normal(size=(3, table.num_rows))
    values = values.round() if coarse else values
    ours, official = both(cells, values, rng.dirichlet(np.ones(3), size=(2, 4)))
    assert ours.shape == official.shape == (2, 4, 3, len(cells.machines))
    np.testing.assert_allclose(ours, official)


def test_one_member_with_ties_on_its_own():
    table = make_table()
    cells = LabelledCells.from_table(table)
    values = np.stack([table["score"].to_numpy().round(), table["score"].to_numpy()])
    np.testing.assert_allclose(*both(cells, values, np.eye(2)))


def test_machines_of_other_sizes_and_absent_domains():
    quiet = make_table(("drone",), 3).filter(pa.compute.not_equal(make_table(("drone",), 3)["domain"], "target"))
    table = conform(pa.concat_tables([make_table(), quiet]))
    cells = LabelledCells.from_table(table)
    ours, official = both(cells, table["score"].to_numpy()[None], np.ones((1, 1)))
    np.testing.assert_allclose(ours, official)
    assert np.isnan(ours[0, 1]).tolist() == [m == "drone" for m in cells.machines]


def test_many_blocks_are_one(monkeypatch):
    table = make_table()
    cells, values = LabelledCells.from_table(table), np.random.default_rng(0).normal(size=(2, table.num_rows))
    weights = np.random.default_rng(1).dirichlet(np.ones(2), 30)
    whole = Omega(values, cells).cells(weights)
    monkeypatch.setattr("fusion.omega.BLOCK", 100)
    monkeypatch.setattr("fusion.omega.SUMMED", 500)
    assert Omega(values, cells).cells(weights) == pytest.approx(whole)
