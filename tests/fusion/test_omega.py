import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.omega import Omega
from scoring.metrics import LabelledCells
from tests.tables import make_table


@given(
    per_cell=st.integers(1, 9),
    domains=st.sampled_from([["source", "target"], ["source"], ["target", None]]),
    tied=st.integers(0, 3),
    block=st.sampled_from([1, 100, 20_000]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=40, deadline=None)
def test_the_official_metrics_come_out(per_cell, domains, tied, block, seed):
    """Of any number of clips, so that the limit of pAUC falls between normals; with ties; in blocks of any size."""
    rng = np.random.default_rng(seed)
    table = make_table(("fan", "pump"), per_cell, 2)
    domain = np.where(table["machine"].to_numpy() == "fan", rng.choice(domains, len(table)), table["domain"].to_numpy())
    table = table.set_column(4, "domain", pa.array(domain, pa.string()))
    table = table.filter(pa.array(rng.random(len(table)) < (0.9 if per_cell > 3 else 1)))
    cells, values = LabelledCells.from_table(table), rng.normal(size=(3, len(table)))
    values[:tied] = values[:tied].round()
    weights = np.concatenate([rng.dirichlet(np.ones(3), size=(2, 3)), np.eye(3)[None].repeat(2, 0)], axis=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fusion.omega.BLOCK", block)
        patch.setattr("fusion.omega.SUMMED", 3 * block)
        ours = Omega(values, cells).cells(weights)
    assert ours.shape == (2, 6, 3, len(cells.machines))
    np.testing.assert_allclose(ours, cells.values(weights @ values))
