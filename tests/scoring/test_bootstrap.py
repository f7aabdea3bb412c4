import numpy as np
import pyarrow as pa
import pytest

from scoring import bootstrap
from scoring.bootstrap import bootstrap_intervals
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import conform
from tests.tables import make_table


def test_intervals_are_those_of_drawing_clips_one_stratum_at_a_time():
    """AUC being the share of pairs that are in the right order."""
    table, rng, drawn = make_table(["fan"], per_cell=20, train=0), np.random.default_rng(0), []
    score, condition, domain = (table[c].to_numpy() for c in ("score", "condition", "domain"))
    for _ in range(2000):
        anomalies = [score[(condition == "anomaly") & (domain == d)] for d in ("source", "target")]
        anomaly = np.concatenate([rng.choice(scores, 20) for scores in anomalies])
        normal = rng.choice(score[(condition == "normal") & (domain == "source")], 20)
        drawn.append(100 * (anomaly[:, None] > normal).mean())
    found = bootstrap_intervals(table, 4000).machines["fan"]["auc_source"]
    np.testing.assert_allclose(found, np.quantile(drawn, [0.025, 0.975]), atol=1.2)


def test_absent_values_have_no_interval_and_perfect_ones_no_width():
    perfect = make_table(["pump"], separation=1e6)
    hidden = perfect.set_column(4, "domain", pa.nulls(perfect.num_rows, pa.string()))
    table = conform(pa.concat_tables([make_table(["fan"]), hidden]))
    found, measured = bootstrap_intervals(table, 100), official_metrics(table).as_dict()
    for machine, values in measured["machines"].items():
        for key, value in values.items():
            low, high = found.machines[machine][key] or (None, None)
            assert (low, high) == (value, value) if machine == "pump" else low <= value <= high and low < high
    assert found.omega[0] < measured["omega"] < found.omega[1]
    with pytest.raises(InputError, match="no test clip has a known condition"):
        bootstrap_intervals(make_table(labelled=False))


def test_the_seed_decides_and_there_are_as_many_replicates_as_wanted(monkeypatch):
    table = make_table()
    assert bootstrap_intervals(table, 60) == bootstrap_intervals(table, 60)
    assert bootstrap_intervals(table, 60) != bootstrap_intervals(table, 60, seed=1)
    monkeypatch.setattr(bootstrap, "BLOCK", 25 * 3 * 48)
    cells, rng = bootstrap.LabelledCells.from_table(table), np.random.default_rng(0)
    values = bootstrap.replicated_cells(cells, table["score"].to_numpy()[None], 60, rng)
    assert values.shape == (1, 60, 3, 2)
