"""Views are saved as MLflow's UI saves them, which it does not publish; this tells which release they are for."""

import json
from importlib.metadata import version
from pathlib import Path

import mlflow

from orchestrator.tracking import views
from orchestrator.tracking.descriptions import Shown

RELEASE = "3."


def test_views_have_the_columns_that_matter():
    settings = ({"seed": "0", "channel": "near"}, {"seed": "1", "channel": "near"}, {"path": "log_mel"})
    metrics = {"omega": 60.0, "hmean/my.pump": 1.0, "hmean/fan": 1.0, "pauc/fan": 1.0}
    parts = [Shown("b", {}, "", Path(), (), params=p, metrics=metrics, tags={"system": "s"}) for p in settings[:2]]
    parts.append(Shown("baseline", {}, "", Path(), (), params=settings[2], metrics={"hmean/saw": 1.0}))
    tags = views.experiment_tags(7, parts)
    state = json.loads(json.loads(tags[f"mlflow.sharedViewState.{views.BRANCHES}"])["state"])
    machines = ["metrics.`omega`", "metrics.`hmean/fan`", "metrics.`hmean/my.pump`"]
    assert state["selectedColumns"] == [*machines, "params.`seed`", "tags.`detector`", "tags.`system`"]
    assert (state["searchFilter"], state["orderByKey"]) == ("tags.role = 'branch'", "metrics.`omega`")
    (chart,) = state["compareRunCharts"]
    assert chart["selectedMetrics"] == ["hmean/my.pump", "hmean/fan", "omega"]  # lines have the colour of the last
    assert views.link("http://host:1/", "7", "v").startswith("http://host:1/#/experiments/7/runs?")


def test_the_ui_reads_what_is_written():
    """The tag's name and the keys of the state stand in the UI's own code."""
    assert version("mlflow").startswith(RELEASE), "MLflow has another release: open the views that `tutti ui` prints"
    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    (code,) = [code for path in scripts.glob("main.*.js") if "viewStateShareKey" in (code := path.read_text())]
    words = (views._TAG, "viewStateShareKey", "searchFilter", "orderByKey", "orderByAsc", "selectedColumns")
    words += ("compareRunCharts", "compareRunSections", "metricSectionId", "selectedMetrics", "PARALLEL")
    assert [word for word in words if word not in code] == []
