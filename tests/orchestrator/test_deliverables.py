import csv

import numpy as np
import pyarrow.compute as pc
import pytest

from orchestrator.submission.files import write_submission
from scoring.decisions import thresholds
from tests.tables import make_table


def read(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_scores_and_decisions_of_every_test_clip(tmp_path):
    table = make_table(labelled=False)
    write_submission(table, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        f"{kind}_{machine}_section_00_test.csv"
        for kind in ("anomaly_score", "decision_result")
        for machine in ("fan", "pump")
    ]
    for machine in ("fan", "pump"):
        rows = [r for r in table.to_pylist() if r["machine"] == machine and r["split"] == "test"]
        scores = read(tmp_path / f"anomaly_score_{machine}_section_00_test.csv")
        assert [(name, float(value)) for name, value in scores] == [(r["clip"], r["score"]) for r in rows]
        limit = thresholds(table)[machine, 0]
        decisions = read(tmp_path / f"decision_result_{machine}_section_00_test.csv")
        assert decisions == [[r["clip"], str(int(r["score"] > limit))] for r in rows]
        assert len({d for _, d in decisions}) == 2


def test_the_test_set_does_not_move_a_decision(tmp_path):
    table = make_table()
    test = np.flatnonzero(table["split"].to_numpy() == "test")
    train = np.flatnonzero(table["split"].to_numpy() == "train")
    write_submission(table, tmp_path / "all")
    write_submission(table.take(np.concatenate([train, test[::5]])), tmp_path / "few")
    for path in (tmp_path / "few").iterdir():
        assert set(map(tuple, read(path))) <= set(map(tuple, read(tmp_path / "all" / path.name)))


def test_the_folder_holds_the_machines_of_the_table(tmp_path):
    """An earlier submission goes when the new one is there, not before."""
    table = make_table()
    write_submission(table, tmp_path)
    (tmp_path / "notes.txt").touch()
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
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["anomaly_score_gearbox_section_00_test.csv", blocked.name, "notes.txt"]
