import json

from mlflow.utils.validation import _validate_metric_name

from fusion.tasks import run_here
from orchestrator.fuse.result import fuse_into
from orchestrator.ledger.folders import BRANCHES, RECORD, RESULT, SYSTEMS, Record, write_record
from orchestrator.tracking.descriptions import marks, shown
from tests.fusion.pools import make_pool

MACHINES = ["fan", "Lüfter (A)", "Lüfter [A]", "a:b", "a;b", "press*" + 250 * "x", "press+" + 250 * "x", "v1.2"]


def branch(folder, metrics, detectors):
    """What is shown of a branch with these metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    write_record(
        folder,
        Record(name="a/b/0", identity={"role": "branch"}, metrics=metrics, tables=dict.fromkeys(detectors, "")),
    )
    return shown(folder / RECORD)


def test_machines_of_any_name_have_metrics_of_their_own(tmp_path):
    metrics = {f"knn.{machine}.{cell}": 50.0 + i for i, machine in enumerate(MACHINES) for cell in ("hmean", "pauc")}
    made = branch(tmp_path, {"knn.omega": 60.0, **metrics}, ["knn"]).metrics
    for name in made:
        _validate_metric_name(name)
    hmeans = {name: value for name, value in made.items() if name.startswith("hmean/")}
    assert sorted(hmeans.values()) == [50.0 + i for i in range(len(MACHINES))]
    assert made["hmean/fan"] == 50.0
    assert made["hmean/v1.2"] == 57.0
    # A name does not depend on the other machines.
    for name, value in metrics.items():
        assert value in branch(tmp_path, {name: value}, ["knn"]).metrics.values()
        assert branch(tmp_path, {name: value}, ["knn"]).metrics.keys() <= made.keys()


def test_the_first_detector_gives_a_branch_its_omega(tmp_path):
    metrics = {"seconds": 2.0, "knn.omega": 2.0, "knn-k2.omega": 1.0, "knn-k2.fan.hmean": 1.0, "other.omega": 3.0}
    metrics["lost.fan.hmean"] = 4.0  # of a table that is not there any more
    look = branch(tmp_path, metrics, ["knn-k2", "knn", "other"])
    assert look.metrics == {"omega": 1.0, "hmean/fan": 1.0, "knn/omega": 2.0, "other/omega": 3.0, "cost/seconds": 2.0}
    assert look.note == "Omega 1.00 % with knn-k2, 2.00 % with knn, 3.00 % with other"
    assert branch(tmp_path, {}, ["knn"]).note == "No labels to measure it by"


def test_an_evaluation_set_without_labels(tmp_path):
    folder = tmp_path / SYSTEMS / "one"
    about = {"system": "one", "branches": [], "missing": [], "description": "Any."}
    result = fuse_into(folder, "id", make_pool(("fan",), 6), {"sub": {"g0": ["g0"]}}, {}, about, run_here)
    delivered = {**result["delivered"], "in_sample": None, "lomo": None, "ci": None}
    hidden = {**result, "delivered": delivered, "methods": {}, "machines": {"in_sample": None, "lomo": None}}
    (folder / RESULT).write_text(json.dumps({**hidden, "omega": None}))
    look = shown(folder / RESULT)
    assert look.metrics == {"weights/sub/g0": 1.0}
    assert look.note.startswith("No labels to measure it by: ")


def test_what_is_damaged_or_half_done_is_left_out(tmp_path):
    branch(tmp_path / BRANCHES / "b", {}, ["knn"])
    branch(tmp_path / BRANCHES / "c", {}, [])  # trained, and not scored yet
    folder = tmp_path / SYSTEMS / "one"
    folder.mkdir(parents=True)
    (folder / RESULT).write_text("{}")  # of an older tutti
    (tmp_path / BRANCHES / "half").mkdir()
    (tmp_path / BRANCHES / "half" / RECORD).write_text('{"name"')
    assert [bool(shown(path)) for path in marks(tmp_path)] == [True, False, False, False]
