"""The numbers of the whole chain, that change with a version: `python -m tests.golden.test_golden` writes them."""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter

from branches.data.synthetic import SyntheticSize, write_dataset
from branches.spec import EMBEDDING_VERSION, TRAINING_VERSION, BranchSpec
from fusion.search import FUSION_VERSION
from scoring.detectors import SCORING_VERSION, DetectorSpec
from scoring.table import read_table, write_table
from tests.commands import tutti_here
from tests.finished import NAME, FinishedRun, finish_run
from tests.tables import make_table

pytestmark = pytest.mark.slow(seconds=60)  # of the run that many tests share
GOLDEN = Path(__file__).with_name("golden.json")
CLIPS = 6  # of each table, whose scores are kept one by one
VERSIONS = {"TRAINING_VERSION": TRAINING_VERSION, "EMBEDDING_VERSION": EMBEDDING_VERSION}
VERSIONS |= {"SCORING_VERSION": SCORING_VERSION, "FUSION_VERSION": FUSION_VERSION}
REMEDY = "numbers have changed; if they should, raise {} and write golden.json anew: python -m tests.golden.test_golden"
TABLES = REMEDY.format("TRAINING_VERSION for other weights, EMBEDDING_VERSION for embeddings, else SCORING_VERSION")
FUSION = REMEDY.format("FUSION_VERSION")
SCORES = 0.01  # of a column's standard deviation: more than processors differ by, less than a recipe's change makes
OMEGA = 1.0  # per cent: rounding may swap a pair of clips
THEN = json.loads(GOLDEN.read_text())


def figures(run: FinishedRun, folder: Path) -> dict[str, Any]:
    tables = {}
    for branch in run.result["branches"]:
        branch_id, _, detector = branch["table"].partition("/")
        table = read_table(run.out / "branches" / branch_id / "tables" / f"{detector}.parquet")
        tables[branch["branch"]] = {"omega": branch["omega"], **scores(table)}
    write_pool(folder / "pool")
    made = outputs(run, folder)
    return {
        "versions": VERSIONS,
        "outputs": {name: form(output) for name, output in made.items()},
        "tables": tables,
        "methods": {name: [m["in_sample"], m["lomo"]] for name, m in made["fuse"]["methods"].items()},
        "weights": made["fuse"]["delivered"]["weights"],
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


def outputs(run: FinishedRun, folder: Path) -> dict[str, Any]:
    package, printed = folder / "package", {"run": run.printed}
    for name, options in {
        "plan": [run.system, "--data", run.data, "--out", run.out],
        "doctor": ["--data", run.data, "--out", run.out, "--address", "127.0.0.1:1"],  # starts no Ray
        "data check": [run.data],
        "metrics": [run.out / "systems" / NAME / "fused.parquet"],
        "submission make": [run.out, NAME, "--out", package, "--label", "Name_Place_task2"],
        "submission check": [package],
        "score": [run.model, run.clips("pump")[0], "--machine", "pump"],
        "fuse": ["--tables", folder / "pool", "--out", folder / "fused"],
    }.items():
        done = tutti_here(*name.split(), *options, "--json")
        assert done.stdout, done.stderr
        printed[name] = json.loads(done.stdout)
    return printed


def form(value: Any) -> Any:
    """Keys and types of a JSON value; of a list the first element stands for all."""
    if isinstance(value, dict):
        return {key: form(inner) for key, inner in value.items() if key != "spec"}  # settings are added
    if isinstance(value, list):
        return [form(inner) for inner in value[:1]]
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return "number" if number else type(value).__name__


def defaults() -> dict[str, Any]:
    """Every setting's default by `class.setting`: what has its default is not in an identity."""
    found = {}
    for schema in (BranchSpec.model_json_schema(), TypeAdapter(DetectorSpec).json_schema()):
        for name, settings in {schema.get("title", ""): schema, **schema.get("$defs", {})}.items():
            for setting, about in settings.get("properties", {}).items():
                found[f"{name}.{setting}"] = about.get("default")
    return dict(sorted(found.items()))


def scores(table: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for column in ("score", "calibrated"):
        values = table[column].to_numpy()
        found[column] = [float(v) for v in (values.mean(), values.std(), *values[:: len(values) // CLIPS][:CLIPS])]
    return found


def rows(path: Path) -> list[float]:
    with path.open(newline="") as file:
        return [float(value) for _, value in csv.reader(file)]


def test_golden_numbers_are_of_these_versions_and_no_default_has_changed():
    """A setting may be added; one whose default changes makes other numbers under the same identity."""
    assert THEN["versions"] == VERSIONS, "a version was raised: write golden.json anew"
    now = defaults()
    changed = {name for name, value in THEN["defaults"].items() if name in now and not same(now[name], value)}
    assert not changed, REMEDY.format("TRAINING_VERSION or SCORING_VERSION")


def same(now, then):
    """Whether what both have is equal: of settings within settings some may be added or gone, too."""
    if isinstance(now, dict) and isinstance(then, dict):
        return all(same(now[key], then[key]) for key in now.keys() & then.keys())
    return now == then


def assert_near(now, then, tolerance, remedy):
    assert now.keys() == then.keys()
    for name, numbers in then.items():
        assert now[name] == pytest.approx(numbers, abs=tolerance), f"{name}: {remedy}"


def test_what_commands_print_keeps_its_form_and_scores_of_branches_their_fusion_and_the_submission_stay(run, tmp_path):
    now = figures(run, tmp_path)
    assert lost(now["outputs"], THEN["outputs"]) == []  # scripts rely on it: a key may be added, none goes
    assert now["tables"].keys() == THEN["tables"].keys()
    for name, then in {**THEN["tables"], "fused": THEN["fused"]}.items():
        found, remedy = (now["fused"], FUSION) if name == "fused" else (now["tables"][name], f"{name}: {TABLES}")
        assert found.get("omega") == pytest.approx(then.get("omega"), abs=OMEGA), remedy
        for column in ("score", "calibrated"):
            assert_near({column: found[column]}, {column: then[column]}, SCORES * then[column][1], remedy)
    assert_near(now["methods"], THEN["methods"], OMEGA, FUSION)
    assert_near(now["weights"], THEN["weights"], 0.01, FUSION)
    assert_near(now["submission"], THEN["submission"], SCORES * THEN["fused"]["calibrated"][1], FUSION)
    decisions = [name for name in THEN["submission"] if name.startswith("decision")]
    assert all(now["submission"][name] == THEN["submission"][name] for name in decisions), FUSION


def lost(now, then, place=""):
    if isinstance(then, dict) and isinstance(now, dict):
        return [p for key, form in then.items() for p in lost(now.get(key), form, f"{place}.{key}")]
    if isinstance(then, list) and isinstance(now, list):
        return [p for form in then for p in lost((now or [None])[0], form, f"{place}[]")]
    return [] if now == then else [f"{place}: {then} is now {now}"]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_dataset(folder / "dataset", SyntheticSize(10, 3, 3, 1.0), machines=["rotor", "pump"])
        finish_run(folder, folder / "dataset")
        found = figures(FinishedRun(folder), folder)
        GOLDEN.write_text(json.dumps({**found, "defaults": defaults()}, indent=1) + "\n")
