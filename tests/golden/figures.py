"""The golden run: figures of a small run, to be compared with those that are kept in `golden.json`.

    python -m tests.golden.figures        writes golden.json anew

Do that only together with a raised version, and say in the commit why the numbers differ.
"""

from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from branches.data.synthetic import SyntheticSize, write_dataset
from branches.spec import EMBEDDING_VERSION, TRAINING_VERSION, BranchSpec
from fusion.search import FUSION_VERSION
from scoring.detectors import SCORING_VERSION, DetectorSpec
from scoring.table import read_table
from tests.commands import tutti, tutti_here

FOLDER = Path(__file__).parent
GOLDEN = FOLDER / "golden.json"
CLIPS = 6  # of each table, whose scores are kept one by one


def golden_run(folder: Path) -> dict[str, Any]:
    """Generate a data set in `folder`, run the golden system on it, and collect its figures."""
    data, out = folder / "data", folder / "out"
    write_dataset(data, SyntheticSize(10, 3, 3, 1.0), machines=["rotor", "pump"])
    finished = tutti("run", FOLDER / "golden.yaml", "--data", data, "--out", out, "--json")
    assert finished.returncode == 0, finished.stderr
    result = json.loads(finished.stdout)["systems"]["golden"]
    tables = {}
    for branch in result["branches"]:
        branch_id, _, detector = branch["table"].partition("/")
        table = read_table(out / "branches" / branch_id / "tables" / f"{detector}.parquet")
        tables[f"{branch['branch']} {detector}"] = {"omega": branch["omega"], **figures(table)}
    return {
        "versions": versions(),
        "outputs": outputs(data, out),
        "tables": tables,
        "methods": {name: [m["in_sample"], m["lomo"]] for name, m in result["methods"].items()},
        "weights": result["delivered"]["weights"],
        "fused": figures(read_table(out / "systems" / "golden" / "fused.parquet")),
        "submission": {path.name: rows(path) for path in sorted((out / "submission" / "golden").rglob("*.csv"))},
    }


def outputs(data: Path, out: Path) -> dict[str, Any]:
    """The form of what each command prints with `--json`, of a finished run in `out`."""
    system, model, package = FOLDER / "golden.yaml", out.with_name("model"), out.with_name("package")
    fused = out / "systems" / "golden" / "fused.parquet"
    clip = next((data / "pump" / "test").iterdir())
    assert tutti_here("export", out, "golden", "--out", model).exit_code == 0
    commands = {
        "run": ["run", system, "--data", data, "--out", out],
        "plan": ["plan", system, "--data", data, "--out", out],
        "doctor": ["doctor", "--data", data, "--out", out, "--address", "127.0.0.1:1"],  # starts no Ray
        "data check": ["data", "check", data],
        "metrics": ["metrics", fused],
        "fuse": ["fuse", system, "--tables", out, "--out", out.with_name("fused")],
        "submission make": ["submission", "make", out, "golden", "--out", package, "--label", "Name_Place_task2"],
        "submission check": ["submission", "check", package],
        "score": ["score", model, clip, "--machine", "pump"],
    }
    forms = {}
    for name, command in commands.items():
        printed = tutti_here(*command, "--json")
        assert printed.stdout, printed.stderr
        forms[name] = _form(json.loads(printed.stdout))
    return forms


def _form(value: Any) -> Any:
    """Keys and types of a JSON value; of a list the first element stands for all."""
    if isinstance(value, dict):
        return {key: _form(inner) for key, inner in value.items() if key != "spec"}  # settings are added
    if isinstance(value, list):
        return [_form(inner) for inner in value[:1]]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "number" if number else type(value).__name__


def versions() -> dict[str, int]:
    """The versions that are raised when numbers change."""
    return {
        "TRAINING_VERSION": TRAINING_VERSION,
        "EMBEDDING_VERSION": EMBEDDING_VERSION,
        "SCORING_VERSION": SCORING_VERSION,
        "FUSION_VERSION": FUSION_VERSION,
    }


def defaults() -> dict[str, Any]:
    """Every setting's default by `class.setting`: what has its default is not in an identity."""
    found = {}
    for schema in (BranchSpec.model_json_schema(), TypeAdapter(DetectorSpec).json_schema()):
        classes = {schema.get("title", ""): schema, **schema.get("$defs", {})}
        for name, settings in classes.items():
            for setting, about in settings.get("properties", {}).items():
                found[f"{name}.{setting}"] = about.get("default")
    return dict(sorted(found.items()))


def figures(table: Any) -> dict[str, Any]:
    """Mean, spread and some clips of a table's two columns of scores."""
    found: dict[str, Any] = {}
    for column in ("score", "calibrated"):
        values = table[column].to_numpy()
        chosen = values[:: len(values) // CLIPS][:CLIPS]
        found[column] = [float(values.mean()), float(values.std()), *map(float, chosen)]
    return found


def rows(path: Path) -> list[float]:
    """The second column of a CSV file of the challenge."""
    with path.open(newline="") as file:
        return [float(np.float64(value)) for _, value in csv.reader(file)]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        GOLDEN.write_text(json.dumps({**golden_run(Path(temporary)), "defaults": defaults()}, indent=1) + "\n")
