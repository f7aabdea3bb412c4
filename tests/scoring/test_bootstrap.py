import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from scoring.bootstrap import bootstrap_intervals
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import conform
from tests.tables import make_table


def test_intervals_are_those_of_drawing_clips_one_stratum_at_a_time():
    table = make_table(["fan"], per_cell=20, train=0)
    rng = np.random.default_rng(0)
    score, condition, domain = (table[c].to_numpy() for c in ("score", "condition", "domain"))
    strata = [np.flatnonzero((condition == c) & (domain == d)) for c in ("normal", "anomaly") for d in set(domain)]
    drawn = []
    for _ in range(1000):
        rows = np.concatenate([rng.choice(stratum, len(stratum)) for stratum in strata])
        rows = rows[(condition[rows] == "anomaly") | (domain[rows] == "source")]
        drawn.append(100 * roc_auc_score(condition[rows] == "anomaly", score[rows]))
    expected = np.quantile(drawn, [0.025, 0.975])
    found = bootstrap_intervals(table, 2000).machines["fan"]["auc_source"]
    np.testing.assert_allclose(found, expected, atol=1.5)


def test_nearly_all_intervals_cover_the_true_value():
    """Of scores N(0, 1) and N(1, 1) the AUC is known: Φ(1 / √2)."""
    found = [bootstrap_intervals(make_table(["fan"], 40, 0, seed=s), 300).machines["fan"] for s in range(60)]
    covered = [low <= 76.02 <= high for low, high in (of["auc_source"] for of in found)]
    assert np.mean(covered) > 0.85


def test_absent_cells_stay_absent_and_strata_keep_their_size():
    table = make_table(["fan", "pump"], per_cell=5)
    no_target = (table["machine"].to_numpy() == "fan") & (table["domain"].to_numpy() == "target")
    table = conform(table.filter(~no_target))
    found = bootstrap_intervals(table, 100)
    assert found.machines["fan"]["auc_target"] is None
    for name, values in official_metrics(table).as_dict()["machines"].items():
        for key, value in values.items():
            interval = found.machines[name][key]
            assert (interval is None) == (value is None)
            assert interval is None or interval[0] <= interval[1]


def test_the_domain_may_be_hidden_and_a_perfect_score_has_no_width():
    table = make_table(["fan"], separation=1e6)
    hidden = table.set_column(4, "domain", pa.nulls(table.num_rows, pa.string()))
    assert bootstrap_intervals(hidden, 50).machines["fan"]["pauc"] == (100, 100)
    with pytest.raises(InputError, match="no test clip has a known condition"):
        bootstrap_intervals(make_table(labelled=False))


def test_the_same_seed_gives_the_same_intervals():
    table = make_table()
    assert bootstrap_intervals(table, 60) == bootstrap_intervals(table, 60)
    assert bootstrap_intervals(table, 60) != bootstrap_intervals(table, 60, seed=1)
