"""Views are saved as MLflow's UI saves them, which it does not publish; this tells which release they are for."""

from importlib.metadata import version
from pathlib import Path

import mlflow

from orchestrator.tracking import views

RELEASE = "3."


def test_it_is_for_this_release_of_mlflow():
    assert version("mlflow").startswith(RELEASE), "MLflow has another release: open the views that `tutti ui` prints"


def test_the_ui_reads_what_is_written():
    """The tag's name and the keys of the state stand in the UI's own code."""
    scripts = Path(mlflow.__file__).parent / "server" / "js" / "build" / "static" / "js"
    (script,) = [path for path in scripts.glob("main.*.js") if "viewStateShareKey" in path.read_text()]
    code = script.read_text()
    words = (views._TAG, "viewStateShareKey", "searchFilter", "orderByKey", "orderByAsc", "selectedColumns")
    words += ("compareRunCharts", "compareRunSections", "metricSectionId", "selectedMetrics", "PARALLEL")
    assert [word for word in words if word not in code] == []
