import csv

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from orchestrator.submission.files import write_submission
from scoring.decisions import thresholds
from tests.tables import make_table


def rows(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_scores_and_decisions_of_every_test_clip(tmp_path):
    """A clip is decided an anomaly if its score is above the threshold, not if it is the threshold."""
    table = make_table(labelled=False)
    limits = thresholds(table)
    first = table["split"].to_pylist().index("test")
    score = [limits["fan", 0] if i == first else value for i, value in enumerate(table["score"].to_pylist())]
    table = table.set_column(table.schema.get_field_index("score"), "score", pa.array(score))
    write_submission(table, tmp_path)
    kinds = ("anomaly_score", "decision_result")
    names = sorted(f"{kind}_{machine}_section_00_test.csv" for kind in kinds for machine in ("fan", "pump"))
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for machine in ("fan", "pump"):
        wanted = [r for r in table.to_pylist() if r["machine"] == machine and r["split"] == "test"]
        scores = rows(tmp_path / f"anomaly_score_{machine}_section_00_test.csv")
        assert [(name, float(value)) for name, value in scores] == [(r["clip"], r["score"]) for r in wanted]
        decisions = rows(tmp_path / f"decision_result_{machine}_section_00_test.csv")
        assert decisions == [[r["clip"], str(int(r["score"] > limits[machine, 0]))] for r in wanted]
        assert {decision for _, decision in decisions} == {"0", "1"}


def test_the_folder_holds_the_machines_of_the_table(tmp_path):
    """An earlier submission goes when the new one is there, not before; other files stay."""
    table = make_table()
    write_submission(table, tmp_path)
    (tmp_path / "notes.csv").touch()
    before = {path.name for path in tmp_path.iterdir()}
    fan = table.filter(pc.equal(table["machine"], "fan"))
    others = fan.set_column(0, "machine", [["gearbox"] * fan.num_rows])
    blocked = tmp_path / "decision_result_gearbox_section_00_test.csv"
    blocked.mkdir()
    with pytest.raises(IsADirectoryError):
        write_submission(others, tmp_path)
    assert before < {path.name for path in tmp_path.iterdir()}
    blocked.rmdir()
    write_submission(others, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"anomaly_score_gearbox_section_00_test.csv", blocked.name, "notes.csv"}
