"""Saved views of an experiment in MLflow's UI: the menu "Views" offers them, and a link opens one.

A view is a tag of the experiment, `mlflow.sharedViewState.<key>`, as MLflow's own "Save view" writes it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from orchestrator.tracking.descriptions import Shown


TREE, BRANCHES, FUSIONS = "tutti-tree", "tutti-branches", "tutti-systems"
_TAG = "mlflow.sharedViewState."
_MACHINES = 24  # columns for as many at most
_SETTINGS = 16
_ALWAYS = ("attributes.`Run Name`", "runDateAndNestInfo")  # columns that MLflow shows, as it calls them
_WIDTH = 105  # of a column, in pixels
_NAME_WIDTH = 300
_CHARTS = "^omega|^loss|^hmean/"  # of some hundred that there may be; the field above the charts shows it
_SECTION = {"uuid": "tutti", "name": "all together", "columns": 1, "display": True}


def experiment_tags(created: int, parts: Sequence[Shown]) -> dict[str, str]:
    """Tags by which MLflow offers views of an experiment with the columns that matter.

    created: when the experiment was, in ms
    parts: of which the systems' branches decide on machines and on the settings that differ
    """
    branches = [part for part in parts if part.tags.get("system")]  # the baseline shares few settings with others
    hmean = sorted({name for branch in branches for name in branch.metrics if name.startswith("hmean/")})
    omega, machines = "metrics.`omega`", [f"metrics.`{name}`" for name in hmean[:_MACHINES]]
    settings = [f"params.`{key}`" for key in _differing(branches)[:_SETTINGS]]
    branch_columns = [omega, *machines, *settings, "tags.`detector`", "tags.`system`"]
    system_columns = [omega, "metrics.`omega_baseline`", "metrics.`omega_in_sample`", "tags.`method`", *machines]
    views = {
        TREE: _view("1 Tree: run, systems, branches", created, [omega, *machines]),
        BRANCHES: _view("2 Branches, best first", created, branch_columns, "tags.role = 'branch'", omega),
        FUSIONS: _view("3 Systems, best first", created, system_columns, "tags.role = 'fusion'", omega),
    }
    return {f"{_TAG}{key}": view for key, view in views.items()}


def _differing(branches: Sequence[Shown]) -> list[str]:
    """Settings that are not the same for all branches."""
    keys = sorted({key for branch in branches for key in branch.params})
    return [key for key in keys if len({branch.params.get(key) for branch in branches}) > 1]


def link(server: str, experiment_id: str, view: str) -> str:
    """Address of a view. Without the workflow's type the UI opens on its page for language models."""
    query = f"workflowType=machine_learning&viewStateShareKey={view}"
    return f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs?{query}"


def _view(name: str, created: int, columns: list[str], search: str = "", order: str = "attributes.start_time") -> str:
    state = {
        "searchFilter": search,
        "orderByKey": order,
        "orderByAsc": False,
        "selectedColumns": columns,
        "columnOrder": [*_ALWAYS, *columns],
        "chartsSearchFilter": _CHARTS,
        "columnWidths": {_ALWAYS[0]: _NAME_WIDTH, **dict.fromkeys(columns, _WIDTH)},
        "compareRunCharts": [_parallel([name for name in columns if name.startswith("metrics.")])],
        "compareRunSections": [_SECTION],
    }
    return json.dumps({"name": name, "createdAt": created, "updatedAt": created, "state": json.dumps(state)})


def _parallel(columns: Sequence[str]) -> dict[str, Any]:
    """A chart above MLflow's own, with axes that span the values: bars start at 0, where 52 and 59 look alike."""
    return {
        "type": "PARALLEL",
        "uuid": "tutti-metrics",
        "metricSectionId": _SECTION["uuid"],
        "selectedMetrics": [column.removeprefix("metrics.`").removesuffix("`") for column in reversed(columns)],
        "selectedParams": [],
        "isGenerated": False,
        "deleted": False,
    }
