"""Figures of score tables: the official metrics, their intervals, and what decisions are worth."""

from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from scoring import bootstrap
from scoring.bootstrap import bootstrap_intervals
from scoring.calibration import calibrate
from scoring.decisions import RULES, DecisionMetrics, decision_metrics, thresholds
from scoring.errors import InputError
from scoring.metrics import LabelledCells, official_metrics, other_rule, roc_area
from scoring.table import SCHEMA, conform, read_table
from tests.tables import make_table


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3), st.booleans()), min_size=2, max_size=40),
    st.sampled_from([1.0, 0.1, 0.37]),
)
@settings(max_examples=100, deadline=None)
def test_roc_area_is_scikit_learns_of_clips_repeated_by_their_weights(clips, max_fpr):
    """Of few distinct scores, so that ties inside and across the classes are common; some weigh nothing."""
    scores, weights, anomaly = map(np.array, zip(*clips, strict=True))
    found = roc_area(scores.astype(float), anomaly * weights.astype(float), ~anomaly * weights.astype(float), max_fpr)
    labels = anomaly.repeat(weights)
    assume(len(set(labels.tolist())) == 2)
    expected = roc_auc_score(labels, scores.repeat(weights), max_fpr=None if max_fpr == 1 else max_fpr)
    assert found == pytest.approx(expected, abs=1e-12)


@st.composite
def labelled_tables(draw):
    """Sections of any size, with ties; some without a domain or with hidden ones, some without anomalies or labels."""
    rng, rows = np.random.default_rng(draw(st.integers(0, 999))), []
    for machine, section in draw(st.sets(st.tuples(st.sampled_from("ab"), st.integers(0, 1)), min_size=1)):
        domains = draw(st.sampled_from([["source", "target"], ["source"], [None], ["source", "target", None]]))
        conditions = draw(st.sampled_from([["normal", "anomaly"], ["normal", "anomaly", None], ["normal"], [None]]))
        for i in range(draw(st.integers(1, 14))):
            where = (machine, section, f"{i}.wav", str(rng.choice(["test", "test", "train"])))
            rows.append((*where, rng.choice(domains), rng.choice(conditions), float(rng.integers(0, 9))))
    return conform(pa.table([*zip(*rows, strict=True)], SCHEMA.names[:-1]))


def by_the_task_description(rows):
    """AUC of each domain's normals against all anomalies, and pAUC of all; NaN where there is nothing to compare."""
    cells = []
    for domain in ("source", "target", None):
        kept = [r for r in rows if r["condition"] == "anomaly" or domain in (None, r["domain"])]
        labels, scores = [r["condition"] == "anomaly" for r in kept], [r["score"] for r in kept]
        limit = None if domain else 0.1
        cells.append(100 * roc_auc_score(labels, scores, max_fpr=limit) if len(set(labels)) == 2 else np.nan)
    return cells


def harmonic(values):
    values = [value for value in values if not np.isnan(value)]
    return (0 if 0 in values else len(values) / sum(1 / v for v in values)) if values else None


@given(labelled_tables())
@settings(max_examples=60, deadline=None)
def test_official_metrics_follow_the_task_description(table):
    cells = {}
    for row in table.to_pylist():
        if row["split"] == "test" and row["condition"]:
            cells.setdefault((row["machine"], row["section"]), []).append(row)
    cells = {group: by_the_task_description(rows) for group, rows in cells.items()}
    assume(cells)
    found = official_metrics(table)
    assert list(found.machines) == sorted({machine for machine, _ in cells})
    for name, values in found.machines.items():
        own = np.array([values for (machine, _), values in cells.items() if machine == name])
        expected = [*map(harmonic, own.T), harmonic(own.ravel())]
        assert [values.auc_source, values.auc_target, values.pauc, values.hmean] == pytest.approx(expected)
    assert found.omega == pytest.approx(harmonic(np.ravel([*cells.values()])))
    telling = {machine for (machine, _), values in cells.items() if not np.isnan(values[2])}
    assert set(LabelledCells.from_table(table).measurable().machines) == telling


def test_published_values_come_out_and_it_is_told_where_they_are_not_that_years_and_where_labels_lack():
    published = {"global_ap": 56.98, "freq_ap": 57.83, "freq_ap_beam": 60.35, "freq_rdp4_beam": 61.27}
    for name, omega in {**published, "freq_rdp8_beam": 61.98}.items():
        table = read_table(Path(__file__).parent / "fixtures" / "frozen_beats" / f"{name}.parquet")
        assert official_metrics(table).omega == pytest.approx(omega, abs=0.01)
        with pytest.raises(InputError, match="ToyCar section 0 has 0 training clips"):
            calibrate(table, table["score"].to_numpy())
    table = make_table(["fan"])
    names = pa.array([f"normal_id_00_{i:08d}.wav" for i in range(table.num_rows)])
    assert other_rule(table) is None
    assert "if these clips are of 2021" in other_rule(make_table(["fan"], section=1))
    assert other_rule(table.set_column(2, "clip", names)).startswith("clips of 2020")
    for figures in (official_metrics, bootstrap_intervals, partial(decision_metrics, limits={})):
        with pytest.raises(InputError, match="no test clip has a known condition"):
            figures(make_table(labelled=False))


def test_intervals_are_those_of_drawing_clips_by_stratum_perfect_values_have_no_width_and_the_seed_decides(monkeypatch):
    table, rng, drawn = make_table(["fan"], per_cell=20, train=0), np.random.default_rng(0), []
    score, condition, domain = (table[c].to_numpy() for c in ("score", "condition", "domain"))
    for _ in range(2000):
        anomalies = [score[(condition == "anomaly") & (domain == d)] for d in ("source", "target")]
        anomaly = np.concatenate([rng.choice(scores, 20) for scores in anomalies])
        normal = rng.choice(score[(condition == "normal") & (domain == "source")], 20)
        drawn.append(100 * (anomaly[:, None] > normal).mean())
    found = bootstrap_intervals(table, 4000).machines["fan"]["auc_source"]
    np.testing.assert_allclose(found, np.quantile(drawn, [0.025, 0.975]), atol=1.2)
    perfect = make_table(["pump"], separation=1e6)
    hidden = perfect.set_column(4, "domain", pa.nulls(perfect.num_rows, pa.string()))
    table = conform(pa.concat_tables([make_table(["fan"]), hidden]))
    found, measured = bootstrap_intervals(table, 100), official_metrics(table).as_dict()
    for machine, values in measured["machines"].items():
        for key, value in values.items():
            low, high = found.machines[machine][key] or (None, None)
            assert (low, high) == (value, value) if machine == "pump" else low <= value <= high and low < high
    assert found.omega[0] < measured["omega"] < found.omega[1]
    assert found == bootstrap_intervals(table, 100) != bootstrap_intervals(table, 100, seed=1)
    monkeypatch.setattr(bootstrap, "BLOCK", 25 * 3 * 48)
    cells, rng = LabelledCells.from_table(table), np.random.default_rng(0)
    assert bootstrap.replicated_cells(cells, table["score"].to_numpy()[None], 60, rng).shape == (1, 60, 3, 2)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("skew", [1, 0, -1])
def test_a_threshold_lets_about_a_tenth_of_the_normals_through(rule, skew):
    rng = np.random.default_rng(5)
    scores = skew * rng.gamma(3.0, 2.0, 25_000) - 4 if skew else rng.normal(7, 0.1, 25_000)
    train, fresh = scores[:5_000], scores[5_000:]
    assert (fresh > RULES[rule](train)).mean() == pytest.approx(0.1, abs=0.015)
    assert (fresh > RULES[rule](train, 0.97)).mean() == pytest.approx(0.03, abs=0.012)


def test_thresholds_come_from_training_rows_alone_be_they_few_and_decisions_are_scikit_learns():
    """Without skew the gamma is the normal; one more clip exceeds the k-th of n scores with chance 1 − k / (n + 1)."""
    assert RULES["gamma"](np.array([-1.0, 0.0, 1.0])) == pytest.approx(1.28155 * np.sqrt(2 / 3), rel=1e-4)
    assert [RULES["false_alarm"](np.arange(n, 0.0, -1)) for n in (9, 10, 18, 19, 29)] == [9, 10, 18, 18, 27]
    table = make_table()
    high = table["score"].to_numpy() + 100.0 * (table["split"].to_numpy() == "test")
    assert thresholds(table.set_column(6, "score", [high])) == thresholds(table)
    with pytest.raises(InputError, match="fan section 0 has 1 training clip"):
        thresholds(make_table(["fan"], train=1))
    with pytest.raises(InputError, match=r"8 training scores cannot keep false alarms below 0.1; 9 can"):
        RULES["false_alarm"](np.arange(8.0))
    table = make_table(train=40, per_cell=25)
    limits = {group: sorted(table["score"].to_pylist())[110] for group in thresholds(table)}
    for (machine, _), limit in limits.items():
        rows = [r for r in table.to_pylist() if r["machine"] == machine and r["split"] == "test"]
        truth, decided = [r["condition"] == "anomaly" for r in rows], [r["score"] > limit for r in rows]
        expected = precision_recall_fscore_support(truth, decided, average="binary")[:3]
        values = decision_metrics(table, limits)[machine]
        assert [values.precision, values.recall, values.f1] == pytest.approx([100 * v for v in expected])
    high, normal = dict.fromkeys(limits, 1e9), np.array(table["condition"].to_pylist()) == "normal"
    assert decision_metrics(table, high)["fan"] == DecisionMetrics(None, 0.0, 0.0)
    assert decision_metrics(table.filter(normal), high)["fan"] == DecisionMetrics(None, None, None)
