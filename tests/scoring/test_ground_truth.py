"""Labels that come later: shown, and kept from every file and search."""

import numpy as np
import pyarrow as pa
import pytest

from fusion.labelled import LabelledScores
from scoring.errors import InputError
from scoring.ground_truth import read_ground_truth
from scoring.metrics import official_metrics
from scoring.table import conform, write_table

FULL = [
    f"section_00_{domain}_test_{condition}_{i:04d}_spd_{i}.wav"
    for domain in ("source", "target")
    for condition in ("normal", "anomaly")
    for i in range(5)
]


def table(names):
    """Scores of `fan`, the same for the k-th clip under any name."""
    scores = np.random.default_rng(0).normal(size=len(FULL)).tolist()
    return conform(pa.table({"machine": ["fan"] * len(names), "clip": names, "score": scores[: len(names)]}))


HIDDEN = [f"section_00_{i:04d}.wav" for i in range(len(FULL))]


@pytest.fixture
def truth(tmp_path):
    """The evaluator's folders, a level below the one that is given."""
    rows = {"data": ["anomaly", "1", "0"], "domain": ["target", "1", "0"]}
    for kind, (word, yes, no) in rows.items():
        write(
            tmp_path, f"ground_truth_{kind}", [(h, yes if word in f else no) for h, f in zip(HIDDEN, FULL, strict=True)]
        )
    write(tmp_path, "ground_truth_attributes", [(h, f.removesuffix(".wav")) for h, f in zip(HIDDEN, FULL, strict=True)])
    return tmp_path


def write(root, kind, rows):
    path = root / "evaluator" / kind / "ground_truth_fan_section_00_test.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{clip},{value}\n" for clip, value in rows))


def test_hidden_and_renamed_clips_get_the_same_figures(truth):
    expected = official_metrics(table(FULL))
    labels = read_ground_truth(truth)
    assert official_metrics(labels.revealed(table(HIDDEN))) == expected
    assert official_metrics(labels.revealed(table(FULL))) == expected


def test_without_domains_only_the_pauc_is_known(truth):
    for kind in ("domain", "attributes"):
        (truth / "evaluator" / f"ground_truth_{kind}" / "ground_truth_fan_section_00_test.csv").unlink()
    measured = official_metrics(read_ground_truth(truth).revealed(table(HIDDEN))).machines["fan"]
    assert measured.auc_source is None
    assert measured.pauc == official_metrics(table(FULL)).machines["fan"].pauc


def test_the_list_of_2020_is_read(tmp_path):
    names = [f"{c}_id_01_{i:08d}.wav" for c in ("normal", "anomaly") for i in range(10)]
    lines = ["fan", *(f"id_01_{i:08d}.wav,{n},{int('anomaly' in n)}" for i, n in enumerate(names))]
    (tmp_path / "eval_data_list.csv").write_text("\n".join(lines))
    hidden = table([f"id_01_{i:08d}.wav" for i in range(20)])
    assert official_metrics(read_ground_truth(tmp_path).revealed(hidden)) == official_metrics(table(names))


def test_no_file_and_no_search_takes_these_labels(truth, tmp_path):
    revealed = read_ground_truth(truth).revealed(table(HIDDEN))
    with pytest.raises(ValueError, match="not written"):
        write_table(revealed, tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="have reached a search"):
        LabelledScores.of(["a"], revealed["score"].to_numpy()[None], conform(revealed))


def test_a_label_that_changed_counts_and_is_told(truth, caplog):
    swapped = [name.replace("normal", "anomaly") if "normal_0000" in name else name for name in FULL]
    rows = [(h, "1" if "anomaly" in s else "0") for h, s in zip(HIDDEN, swapped, strict=True)]
    write(truth, "ground_truth_data", rows)
    read_ground_truth(truth).revealed(table(FULL))
    assert "labels of 2 clips differ from the table's" in caplog.text


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (HIDDEN[:-1], "1 clips of the ground truth have no score, section_00_0019.wav"),
        ([*HIDDEN[:-1], "section_00_9999.wav"], "no ground truth for fan/section_00_9999.wav"),
    ],
)
def test_a_missing_clip_is_an_error(truth, names, message):
    with pytest.raises(InputError, match=message):
        read_ground_truth(truth).revealed(table(names))


def test_other_faults_are_told(truth, tmp_path):
    other = conform(pa.table({"machine": ["pump"], "clip": ["section_00_0000.wav"], "score": [1.0]}))
    with pytest.raises(InputError, match="fan section 00; the table has none"):
        read_ground_truth(truth).revealed(other)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no ground_truth_<machine>"):
        read_ground_truth(tmp_path / "empty")
    write(truth, "ground_truth_data", [("section_00_0000.wav", "yes")])
    with pytest.raises(InputError, match="0 means normal, 1 means anomaly"):
        read_ground_truth(truth)
