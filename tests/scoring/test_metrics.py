from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from scoring.calibration import calibrate
from scoring.errors import InputError
from scoring.metrics import LabelledCells, official_metrics, other_rule, roc_area
from scoring.table import SCHEMA, conform, read_table
from tests.tables import make_table


@st.composite
def weighted_scores(draw):
    """Few distinct scores, so that ties inside and across the classes are common; some weigh nothing."""
    n = draw(st.integers(2, 40))
    few = st.integers(0, 6)
    scores, weights = (np.array(draw(st.lists(few, min_size=n, max_size=n))) for _ in range(2))
    anomaly = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    return scores.astype(float), weights // 2, anomaly


@given(weighted_scores(), st.sampled_from([1.0, 0.1, 0.37]))
@settings(max_examples=100, deadline=None)
def test_roc_area_is_scikit_learns_of_clips_repeated_by_their_weights(case, max_fpr):
    scores, weights, anomaly = case
    found = roc_area(scores, anomaly * weights.astype(float), ~anomaly * weights.astype(float), max_fpr)
    labels = anomaly.repeat(weights)
    if len(set(labels.tolist())) < 2:
        assert np.isnan(found)
    else:
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
    """Each section has cells of its own, and a machine's values are harmonic means over them."""
    cells = {}
    for row in table.to_pylist():
        if row["split"] == "test" and row["condition"]:
            cells.setdefault((row["machine"], row["section"]), []).append(row)
    cells = {group: by_the_task_description(rows) for group, rows in cells.items()}
    if not cells:
        with pytest.raises(InputError, match="no test clip has a known condition"):
            official_metrics(table)
        return
    found = official_metrics(table)
    assert list(found.machines) == sorted({machine for machine, _ in cells})
    for name, values in found.machines.items():
        own = np.array([values for (machine, _), values in cells.items() if machine == name])
        expected = [*map(harmonic, own.T), harmonic(own.ravel())]
        assert [values.auc_source, values.auc_target, values.pauc, values.hmean] == pytest.approx(expected)
    assert found.omega == pytest.approx(harmonic(np.ravel([*cells.values()])))
    telling = {machine for (machine, _), values in cells.items() if not np.isnan(values[2])}
    assert set(LabelledCells.from_table(table).measurable().machines) == telling


def test_it_is_told_where_the_figure_is_not_that_years():
    table = make_table(["fan"])
    names = pa.array([f"normal_id_00_{i:08d}.wav" for i in range(table.num_rows)])
    assert other_rule(table) is None
    assert "if these clips are of 2021" in other_rule(make_table(["fan"], section=1))
    assert other_rule(table.set_column(2, "clip", names)).startswith("clips of 2020")


def test_published_values_of_tables_made_elsewhere():
    """Omega as those who made the tables published it; without training clips they have no calibration."""
    published = {"global_ap": 56.98, "freq_ap": 57.83, "freq_ap_beam": 60.35, "freq_rdp4_beam": 61.27}
    for name, omega in {**published, "freq_rdp8_beam": 61.98}.items():
        table = read_table(Path(__file__).parent / "fixtures" / "frozen_beats" / f"{name}.parquet")
        assert table.num_rows == 1400
        assert official_metrics(table).omega == pytest.approx(omega, abs=0.01)
        with pytest.raises(InputError, match="ToyCar section 0 has 0 training clips"):
            calibrate(table, table["score"].to_numpy())
