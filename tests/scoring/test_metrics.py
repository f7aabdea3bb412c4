from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from scoring.calibration import calibrate
from scoring.errors import InputError
from scoring.metrics import LabelledCells, harmonic_mean, official_metrics, roc_area
from scoring.table import conform, read_table
from tests.tables import make_table


@st.composite
def labelled_scores(draw):
    n = draw(st.integers(2, 40))
    # Few distinct values, so that ties inside and across the classes are common.
    scores = draw(st.lists(st.integers(0, 6), min_size=n, max_size=n))
    labels = draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(lambda x: 0 < sum(x) < len(x)))
    return np.array(scores, float), np.array(labels)


@given(labelled_scores(), st.sampled_from([1.0, 0.1, 0.37]))
@settings(max_examples=300, deadline=None)
def test_roc_area_is_sklearns(case, max_fpr):
    scores, labels = case
    expected = roc_auc_score(labels, scores, max_fpr=None if max_fpr == 1 else max_fpr)
    assert roc_area(scores, labels.astype(float), (~labels).astype(float), max_fpr) == pytest.approx(
        expected, abs=1e-12
    )


@given(labelled_scores())
@settings(max_examples=100, deadline=None)
def test_integer_weights_are_repeated_clips(case):
    scores, labels = case
    counts = 1 + np.arange(len(scores)) % 3
    weighted = roc_area(scores, labels * counts.astype(float), ~labels * counts.astype(float), 0.1)
    assert weighted == pytest.approx(roc_auc_score(labels.repeat(counts), scores.repeat(counts), max_fpr=0.1))


def test_a_cell_without_normals_or_anomalies_is_absent():
    assert np.isnan(roc_area(np.arange(3.0), np.ones(3), np.zeros(3)))
    assert np.isnan(roc_area(np.arange(3.0), np.zeros(3), np.ones(3), 0.1))


def test_official_metrics_follow_the_task_description():
    table = make_table(separation=0.8, seed=3)
    found = official_metrics(table)
    cells = []
    for machine in ("fan", "pump"):
        rows = [r for r in table.to_pylist() if r["machine"] == machine and r["split"] == "test"]

        def area(keep, rows=rows, **options):
            kept = [r for r in rows if keep(r)]
            labels = [r["condition"] == "anomaly" for r in kept]
            return 100 * roc_auc_score(labels, [r["score"] for r in kept], **options)

        expected = [
            area(lambda r: r["condition"] == "anomaly" or r["domain"] == "source"),
            area(lambda r: r["condition"] == "anomaly" or r["domain"] == "target"),
            area(lambda r: True, max_fpr=0.1),
        ]
        values = found.machines[machine]
        assert [values.auc_source, values.auc_target, values.pauc] == pytest.approx(expected)
        assert values.hmean == pytest.approx(3 / sum(1 / v for v in expected))
        cells += expected
    assert found.omega == pytest.approx(len(cells) / sum(1 / v for v in cells))


def test_missing_target_clips_are_absent_not_numbers():
    table = make_table(["fan"])
    table = table.filter(pa.compute.equal(table["domain"], "source"))
    values = official_metrics(table).machines["fan"]
    assert values.auc_target is None
    assert values.hmean == pytest.approx(2 / (1 / values.auc_source + 1 / values.pauc))


def test_sections_are_cells_of_their_own():
    both = pa.concat_tables([make_table(["fan"], seed=1), make_table(["fan"], seed=2, section=1)])
    one, two = (official_metrics(make_table(["fan"], seed=s)).machines["fan"] for s in (1, 2))
    found = official_metrics(conform(both)).machines["fan"]
    assert found.auc_source == pytest.approx(2 / (1 / one.auc_source + 1 / two.auc_source))


def test_machines_may_differ_in_size():
    small, large = make_table(["fan"], per_cell=3), make_table(["pump"], per_cell=11)
    both = official_metrics(conform(pa.concat_tables([small, large])))
    assert both.machines["fan"] == official_metrics(small).machines["fan"]
    assert both.machines["pump"] == official_metrics(large).machines["pump"]


def test_no_labels_is_an_error():
    with pytest.raises(InputError, match="no test clip has a known condition"):
        LabelledCells.from_table(make_table(labelled=False))


def test_harmonic_mean_skips_absent_values():
    assert harmonic_mean(np.array([50.0, np.nan, 100.0])) == pytest.approx(200 / 3)
    assert harmonic_mean(np.array([50.0, 0.0])) == 0
    assert np.isnan(harmonic_mean(np.array([np.nan])))


# Omega as published by those who made the tables.
PUBLISHED = {
    "global_ap": 56.98,
    "freq_ap": 57.83,
    "freq_ap_beam": 60.35,
    "freq_rdp4_beam": 61.27,
    "freq_rdp8_beam": 61.98,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_values_of_tables_made_elsewhere(name):
    table = read_table(Path(__file__).parent / "fixtures" / "frozen_beats" / f"{name}.parquet")
    assert table.num_rows == 1400
    assert official_metrics(table).omega == pytest.approx(PUBLISHED[name], abs=0.01)
    with pytest.raises(InputError, match="ToyCar section 0 has 0 training clips"):
        calibrate(table, table["score"].to_numpy())
