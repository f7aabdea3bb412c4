import numpy as np
import pytest
from sklearn.metrics import precision_recall_fscore_support

from scoring import decisions
from scoring.decisions import RULES, DecisionMetrics, decision_metrics, thresholds
from scoring.errors import InputError
from tests.tables import make_table


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("skew", [1, 0, -1])
def test_a_threshold_lets_about_a_tenth_of_the_normals_through(rule, skew):
    rng = np.random.default_rng(5)
    scores = skew * rng.gamma(3.0, 2.0, 25_000) - 4 if skew else rng.normal(7, 0.1, 25_000)
    train, fresh = scores[:5_000], scores[5_000:]
    assert (fresh > RULES[rule](train)).mean() == pytest.approx(0.1, abs=0.015)
    assert (fresh > RULES[rule](train, 0.97)).mean() == pytest.approx(0.03, abs=0.012)


def test_the_gamma_of_scores_without_skew_is_the_normal():
    assert decisions.gamma_threshold(np.array([-1.0, 0.0, 1.0]), 0.9) == pytest.approx(
        1.28155 * np.sqrt(2 / 3), rel=1e-4
    )


def test_false_alarms_are_kept_below_the_rate_with_few_clips():
    """A further clip exceeds the k-th of n scores with probability 1 − k / (n + 1)."""
    assert [decisions.false_alarm_threshold(np.arange(n, 0.0, -1), 0.9) for n in (9, 10, 18, 19, 29)] == [
        9,
        10,
        18,
        18,
        27,
    ]
    with pytest.raises(InputError, match=r"8 training scores cannot keep false alarms below 0.1; 9 can"):
        decisions.false_alarm_threshold(np.arange(8.0), 0.9)


def test_thresholds_come_from_training_rows_alone():
    table = make_table()
    high = table["score"].to_numpy() + 100.0 * (table["split"].to_numpy() == "test")
    assert thresholds(table.set_column(6, "score", [high])) == thresholds(table)
    with pytest.raises(InputError, match="fan section 0 has 1 training clips"):
        thresholds(make_table(["fan"], train=1))


def test_decisions_are_scikit_learns():
    """On all test clips of a machine; a clip at the threshold is no anomaly."""
    table = make_table(train=40, per_cell=25)
    limits = {group: sorted(table["score"].to_pylist())[110] for group in thresholds(table)}
    found = decision_metrics(table, limits)
    for (machine, _), limit in limits.items():
        rows = [r for r in table.to_pylist() if r["machine"] == machine and r["split"] == "test"]
        truth, decided = [r["condition"] == "anomaly" for r in rows], [r["score"] > limit for r in rows]
        expected = precision_recall_fscore_support(truth, decided, average="binary")[:3]
        values = found[machine]
        assert [values.precision, values.recall, values.f1] == pytest.approx([100 * v for v in expected])


def test_what_cannot_be_divided_is_absent():
    table = make_table(["fan"])
    high = {("fan", 0): 1e9}
    assert decision_metrics(table, high)["fan"] == DecisionMetrics(None, 0.0, 0.0)
    normal = table.filter(np.array(table["condition"].to_pylist()) == "normal")
    assert decision_metrics(normal, high)["fan"] == DecisionMetrics(None, None, None)
    with pytest.raises(InputError, match="no test clip has a known condition"):
        decision_metrics(make_table(labelled=False), high)
