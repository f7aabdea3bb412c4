"""What is shown in MLflow, and in which columns: views are saved as its UI saves them, which it does not publish."""

import json
from importlib.metadata import version
from pathlib import Path

import mlflow
from hypothesis import given, settings
from hypothesis import strategies as st
from mlflow.utils.validation import _validate_metric_name

from orchestrator.ledger.folders import BRANCHES, RECORD, RESULT, SYSTEMS, Record, write_record
from orchestrator.tracking import views
from orchestrator.tracking.descriptions import Shown, marks, shown

MACHINE = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=250)
ODD = ["fan", "Lüfter (A)", "Lüfter [A]", "a:b", "a;b", "press*" + 250 * "x", "press+" + 250 * "x", "v1.2"]


def branch(folder, metrics, detectors, **known):
    """What is shown of a branch with these metrics."""
    folder.mkdir(parents=True, exist_ok=True)
    known |= {"metrics": metrics, "tables": dict.fromkeys(detectors, "")}
    known |= {"names": {detector: [f"a/{detector}/0", f"c/{detector}/0"] for detector in detectors[1:]}}
    write_record(folder, Record(name="a/b/0", identity={"role": "branch"}, **known))
    return shown(folder / RECORD)


@settings(max_examples=12, deadline=None)
@given(machines=st.just(ODD) | st.lists(MACHINE, min_size=1, max_size=4, unique=True))
def test_machines_of_any_name_have_metrics_of_their_own(tmp_path_factory, machines):
    folder = tmp_path_factory.getbasetemp() / "described"
    metrics = {f"knn.{machine}.{cell}": 50.0 + i for i, machine in enumerate(machines) for cell in ("hmean", "pauc")}
    made = branch(folder, {"knn.omega": 60.0, **metrics}, ["knn"]).metrics
    for name in made:
        _validate_metric_name(name)
    assert sorted(made.values()) == sorted([60.0, *metrics.values()])
    assert {f"hmean/{machine}" for machine in {"fan", "v1.2"} & {*machines}} <= made.keys()
    for name, value in metrics.items():  # a name does not depend on the other machines
        assert branch(folder, {name: value}, ["knn"]).metrics.items() <= made.items()


def test_the_first_table_gives_a_branch_its_omega_and_each_is_called_as_the_systems_call_it(tmp_path):
    metrics = {"seconds": 2.0, "knn.omega": 2.0, "knn-k2.omega": 1.0, "knn-k2.fan.hmean": 1.0, "knn-k2.5.omega": 3.0}
    metrics["lost.fan.hmean"] = 4.0  # of a table that is not there any more
    files = {"tables/knn.parquet": "", "branch.pt": "", "embeddings.npy": ""}
    look = branch(tmp_path, metrics, ["knn-k2", "knn", "knn-k2.5"], files=files)
    figures = {"omega": 1.0, "hmean/fan": 1.0, "a/knn/omega": 2.0, "a/knn-k2.5/omega": 3.0, "cost/seconds": 2.0}
    assert (look.metrics, look.files) == (figures, ["tables/knn.parquet", RECORD])
    assert look.note == "Omega 1.00 % (a/b/0), 2.00 % (a/knn/0), 3.00 % (a/knn-k2.5/0)"
    assert look.name == "a/b/0, a/knn/0, a/knn-k2.5/0"  # the first of an older tutti
    assert look.tags["configuration"] == "a/b, a/knn, c/knn, a/knn-k2.5, c/knn-k2.5"
    assert branch(tmp_path, {}, ["knn"]).note == "No labels to measure it by"
    failed = branch(tmp_path, {}, [], status="FAILED", tags={"failure": "long " * 3000})
    assert 7000 < len(failed.note) < 8000  # where MLflow cuts


def test_an_evaluation_set_without_labels_has_no_figures_but_weights_and_what_is_half_done_nothing(tmp_path):
    delivered = {"in_sample": None, "lomo": None, "method": "uniform", "weights": {"sub": {"g0": 1.0}}}
    result = {"machines": {"in_sample": None, "lomo": None}, "methods": {}, "omega": None, "delivered": delivered}
    result |= {"system": "one", "headline": "g0 alone", "fusion_id": "", "branches": [], "delivers": "", "made": {}}
    (tmp_path / RESULT).write_text(json.dumps(result))
    assert shown(tmp_path / RESULT).metrics == {"weights/sub/g0": 1.0}
    assert shown(tmp_path / RESULT).note == "g0 alone."
    branch(tmp_path / BRANCHES / "b", {}, ["knn"])
    branch(tmp_path / BRANCHES / "c", {}, [])  # trained, and not scored yet
    for path in (tmp_path / SYSTEMS / "one" / RESULT, tmp_path / BRANCHES / "half" / RECORD):
        path.parent.mkdir(parents=True)
        path.write_text('{"name"')
    assert [bool(shown(path)) for path in marks(tmp_path)] == [True, False, False, False]


def test_views_have_the_columns_that_matter():
    settings = ({"seed": "0", "channel": "near"}, {"seed": "1", "channel": "near"}, {"path": "log_mel"})
    metrics = {"omega": 60.0, "hmean/my.pump": 1.0, "hmean/fan": 1.0, "pauc/fan": 1.0}
    parts = [Shown("b", {}, "", Path(), (), params=p, metrics=metrics, tags={"system": "s"}) for p in settings[:2]]
    parts.append(Shown("baseline", {}, "", Path(), (), params=settings[2], metrics={"hmean/saw": 1.0}))
    view = views.experiment_tags(7, parts)[f"mlflow.sharedViewState.{views.BRANCHES}"]
    state = json.loads(json.loads(view)["state"])
    machines = ["metrics.`omega`", "metrics.`hmean/fan`", "metrics.`hmean/my.pump`"]
    assert state["selectedColumns"] == [*machines, "params.`seed`", "tags.`detector`", "tags.`system`"]
    assert (state["searchFilter"], state["orderByKey"]) == ("tags.role = 'branch'", "metrics.`omega`")
    (chart,) = state["compareRunCharts"]
    assert chart["selectedMetrics"] == ["hmean/my.pump", "hmean/fan", "omega"]  # lines have the colour of the last
    assert views.link("http://host:1/", "7", "v").startswith("http://host:1/#/experiments/7/runs?")


def test_the_ui_reads_what_is_written():
    assert version("mlflow").startswith("3."), "MLflow has another release: open the views that `tutti ui` prints"
    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    (code,) = [code for path in scripts.glob("main.*.js") if "viewStateShareKey" in (code := path.read_text())]
    words = "mlflow.sharedViewState. searchFilter orderByKey orderByAsc selectedColumns compareRunCharts PARALLEL"
    assert [word for word in f"{words} compareRunSections metricSectionId".split() if word not in code] == []
