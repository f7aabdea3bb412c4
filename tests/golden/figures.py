"""The golden run: figures of a small run, to be compared with those that are kept in `golden.json`.

    python -m tests.golden.figures        writes golden.json anew

Do that only together with a raised version, and say in the commit why the numbers differ.
"""

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
from scoring.table import read_table, write_table
from tests.commands import tutti_here
from tests.finished import NAME, FinishedRun, finish_run
from tests.tables import make_table

GOLDEN = Path(__file__).with_name("golden.json")
CLIPS = 6  # of each table, whose scores are kept one by one


def figures(run: FinishedRun, folder: Path) -> dict[str, Any]:
    """Figures of the golden run, and of what commands make of it in `folder`."""
    tables = {}
    for branch in run.result["branches"]:
        branch_id, _, detector = branch["table"].partition("/")
        table = read_table(run.out / "branches" / branch_id / "tables" / f"{detector}.parquet")
        tables[f"{branch['branch']} {detector}"] = {"omega": branch["omega"], **scores(table)}
    pool = folder / "pool"
    write_pool(pool)
    fused = printed("fuse", "--tables", pool, "--out", folder / "fused")
    return {
        "versions": versions(),
        "outputs": {name: _form(output) for name, output in {**outputs(run, folder), "fuse": fused}.items()},
        "tables": tables,
        "methods": {name: [m["in_sample"], m["lomo"]] for name, m in fused["methods"].items()},
        "weights": fused["delivered"]["weights"],
        "fused": scores(run.fused()),
        "submission": {path.name: rows(path) for path in sorted((run.out / "submission" / NAME).rglob("*.csv"))},
    }


def write_pool(folder: Path) -> None:
    """Four labelled tables of three machines in two sub-systems: what weights are chosen from."""
    folder.mkdir()
    index = ["table,family,config,seed"]
    for seed, separation in enumerate((1.2, 1.0, 0.6, 0.0)):
        table = make_table(("fan", "pump", "valve"), 12, 12, separation, seed)
        write_table(table, folder / f"{seed}.parquet")
        index.append(f"{seed},{'ab'[seed % 2]},{'cd'[seed // 2]},")
    (folder / "index.csv").write_text("\n".join(index))


def printed(*command: object) -> Any:
    """What a command prints with `--json`."""
    run = tutti_here(*command, "--json")
    assert run.stdout, run.stderr
    return json.loads(run.stdout)


def outputs(run: FinishedRun, folder: Path) -> dict[str, Any]:
    """What each command prints of a run with `--json`."""
    package = folder / "package"
    commands = {
        "plan": ["plan", run.system, "--data", run.data, "--out", run.out],
        "doctor": ["doctor", "--data", run.data, "--out", run.out, "--address", "127.0.0.1:1"],  # starts no Ray
        "data check": ["data", "check", run.data],
        "metrics": ["metrics", run.out / "systems" / NAME / "fused.parquet"],
        "submission make": ["submission", "make", run.out, NAME, "--out", package, "--label", "Name_Place_task2"],
        "submission check": ["submission", "check", package],
        "score": ["score", run.model, run.clips("pump")[0], "--machine", "pump"],
    }
    return {"run": run.printed, **{name: printed(*command) for name, command in commands.items()}}


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


def scores(table: Any) -> dict[str, Any]:
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
        folder = Path(temporary)
        write_dataset(folder / "dataset", SyntheticSize(10, 3, 3, 1.0), machines=["rotor", "pump"])
        finish_run(folder, folder / "dataset")
        found = figures(FinishedRun(folder), folder)
        GOLDEN.write_text(json.dumps({**found, "defaults": defaults()}, indent=1) + "\n")
