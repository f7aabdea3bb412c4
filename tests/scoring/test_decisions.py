import numpy as np
import pytest
from scipy.stats import pearson3, skew
from sklearn.metrics import precision_recall_fscore_support

from scoring.decisions import (
    RULES,
    DecisionMetrics,
    decision_metrics,
    false_alarm_threshold,
    gamma_threshold,
    thresholds,
)
from scoring.errors import InputError
from tests.tables import make_table


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("skewed", [True, False])
def test_threshold_lets_about_a_tenth_of_the_normals_through(rule, skewed):
    rng = np.random.default_rng(5)
    draw = (lambda n: rng.gamma(3.0, 2.0, n) - 4) if skewed else (lambda n: rng.normal(7, 0.1, n))
    assert (draw(20_000) > RULES[rule](draw(5_000), 0.9)).mean() == pytest.approx(0.1, abs=0.015)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_gamma_is_scipys_pearson_type_iii(sign):
    train = sign * np.random.default_rng(1).gamma(2.0, 3.0, 200)
    expected = pearson3.ppf(0.97, skew(train), loc=train.mean(), scale=train.std())
    assert gamma_threshold(train, 0.97) == pytest.approx(expected, rel=1e-12)


def test_the_gamma_of_scores_without_skew_is_the_normal():
    train = np.array([-1.0, 0.0, 1.0])
    assert gamma_threshold(train, 0.5) == pytest.approx(0)


def test_false_alarms_are_kept_below_the_rate_with_few_clips():
    rng = np.random.default_rng(0)
    alarms = [rng.exponential() > false_alarm_threshold(rng.exponential(size=12), 0.9) for _ in range(5000)]
    assert np.mean(alarms) == pytest.approx(1 - 12 / 13, abs=0.015)  # the highest of twelve
    assert false_alarm_threshold(np.arange(9.0), 0.9) == 8
    with pytest.raises(InputError, match=r"8 training scores cannot keep false alarms below 0.1; 9 can"):
        false_alarm_threshold(np.arange(8.0), 0.9)


def test_thresholds_come_from_training_rows_alone():
    table = make_table()
    high = table["score"].to_numpy() + 100.0 * (table["split"].to_numpy() == "test")
    assert thresholds(table.set_column(6, "score", [high])) == thresholds(table)


def test_decisions_are_scikit_learns():
    table = make_table(train=40, per_cell=25)
    found = decision_metrics(table, thresholds(table))
    for machine, limit in thresholds(table).items():
        rows = [r for r in table.to_pylist() if r["machine"] == machine[0] and r["split"] == "test"]
        truth, decided = [r["condition"] == "anomaly" for r in rows], [r["score"] > limit for r in rows]
        expected = precision_recall_fscore_support(truth, decided, average="binary")[:3]
        values = found[machine[0]]
        assert [values.precision, values.recall, values.f1] == pytest.approx([100 * v for v in expected])


def test_what_cannot_be_divided_is_absent():
    table = make_table(["fan"])
    high = {("fan", 0): 1e9}
    assert decision_metrics(table, high)["fan"] == DecisionMetrics(None, 0.0, 0.0)
    normal = table.filter(np.array(table["condition"].to_pylist()) == "normal")
    assert decision_metrics(normal, high)["fan"] == DecisionMetrics(None, None, None)
    with pytest.raises(InputError, match="no test clip has a known condition"):
        decision_metrics(make_table(labelled=False), high)


@pytest.mark.parametrize(("train", "message"), [(0, "has 0 training clips"), (1, "has 1 training clips")])
def test_no_threshold_without_training_rows(train, message):
    with pytest.raises(InputError, match=message):
        thresholds(make_table(["fan"], train=train))
