import csv
import json

import numpy as np
import pytest

from fusion.search import fuse
from orchestrator.report import write_report
from orchestrator.result import describe
from orchestrator.submission import write_submission
from scoring.decisions import thresholds
from scoring.errors import InputError
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


def test_a_report_needs_results(tmp_path):
    with pytest.raises(InputError, match="no results to report"):
        write_report(tmp_path)


def test_a_damaged_result_is_named(tmp_path):
    (tmp_path / "systems" / "mine").mkdir(parents=True)
    (tmp_path / "systems" / "mine" / "result.json").write_text('{"x":')
    with pytest.raises(InputError, match=r"mine/result.json: not a result"):
        write_report(tmp_path)


def test_the_report_shows_absent_values_as_dashes_and_escapes_text(tmp_path):
    branch = {"table": "t", "branch": "one/<b>", "detector": "knn-k1", "omega": None, "machines": {}}
    tree = {"one": {"<b>": ["t"]}}
    about = {"system": "mine", "dataset": "abc", "description": "a <script>", "branches": [branch]}
    result = about | describe(fuse({"t": make_table(labelled=False)}, tree), tree)
    (tmp_path / "systems" / "mine").mkdir(parents=True)
    (tmp_path / "systems" / "mine" / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text()
    assert "<script>" not in page
    assert "<td>Omega, LOMO</td>" not in page
    assert "<td>one/&lt;b&gt;</td><td>knn-k1</td><td>–</td>" in page
    assert "None" not in page
    with pytest.raises(InputError, match="no results to report"):
        write_report(tmp_path, dataset="of other data")


def test_the_report_tells_what_was_tried_and_for_whom(tmp_path):
    tree = {"one": {"a": ["a"], "b": ["b"]}}
    fusion = fuse({name: make_table(per_cell=8, seed=i) for i, name in enumerate("ab")}, tree)
    result = {"system": "mine", "dataset": "abc", "description": "", "branches": []} | describe(fusion, tree)
    (tmp_path / "systems" / "mine").mkdir(parents=True)
    (tmp_path / "systems" / "mine" / "result.json").write_text(json.dumps(result))
    page = write_report(tmp_path).read_text()
    for method, values in result["methods"].items():
        assert f"<td>{method}</td><td>{values['strength']}</td><td>{values['in_sample']:.2f}</td>" in page
    assert "95 % interval" in page
    assert "Transductive" not in page
