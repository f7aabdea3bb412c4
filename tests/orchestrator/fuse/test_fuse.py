"""Fusions into a folder: of a run's system, of tables in a folder or a store, and by the weights of another result."""

import csv
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from branches.data.dataset import Dataset
from branches.spec import PROJECTION
from fusion.hierarchy import tables_of
from fusion.tasks import run_here
from orchestrator.fuse import result as results
from orchestrator.ledger.folders import FUSED, HELD_OUT, RESULT, table_file
from orchestrator.plan import make_plan, table_names, without
from orchestrator.system import load_system
from scoring.calibration import calibrate
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import is_transductive, metadata_of, read_table, with_scores, write_table
from tests.commands import tutti_here
from tests.fusion.pools import make_pool
from tests.orchestrator.ledgers import EXPERIMENT, Ledger, empty_store, finished_branch
from tests.tables import make_table

PAIR = "name: pair\nsubsystems: {one: {a: {seeds: [0, 1]}, b: {branch: {objective: softmax}, detector: knn}}}\n"
ROWS = [("g0", "a", "good", ""), ("g1", "a", "good", ""), ("p0", "a", "poor", "0"), ("o0", "b", "other", "0")]
HEADER = ("table", "family", "config", "seed")
POOL = make_pool(("fan", "pump"), 10)
FLAG = "--transductive-normalisation"


class Pair:
    def __init__(self, file, data):
        file.write_text(PAIR)
        self.file, self.data, self.system = file, Dataset.read(data), load_system(str(file), "tiny")
        self.plan = make_plan([self.system], self.data)
        self.names = tables_of(self.plan.trees["pair"])
        self.tables = self.made()

    def made(self, *like, **options):
        return {name: make_table(*like, seed=i, **options) for i, name in enumerate(self.names)}

    def fused(self, out, tables=None, baseline=None, plan=None):
        plan, tables = plan or self.plan, {**(tables or self.tables), self.plan.baseline: baseline}
        for path, table in ((table_file(out, name), table) for name, table in tables.items() if table):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_table(table, path)
        return results.fused_system(
            self.system, self.data, plan if baseline else without(plan, {plan.baseline}), out, run_here
        )

    def write(self, folder, **known):
        folder.mkdir(parents=True)
        for i, branch in enumerate(self.plan.branches[:-1]):  # the last one is the baseline
            (name,), (scoring,), spec = table_names(branch), branch.scorings, branch.spec.model_dump_json()
            known |= {"config_id": branch.config_id, "spec": spec, "detector": scoring.detector.model_dump_json()}
            write_table(self.tables[name].replace_schema_metadata(known), folder / f"{i}.parquet")


@pytest.fixture(scope="module")
def pair(tmp_path_factory, dataset):
    return Pair(tmp_path_factory.mktemp("pair") / "pair.yaml", dataset)


def write_pool(folder, tables, rows=ROWS, header=HEADER):
    folder.mkdir(exist_ok=True)
    for name, table in tables.items():
        write_table(table, folder / f"{name}.parquet")
    with open(folder / "index.csv", "w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
        csv.writer(file).writerows([(*header, "source"), *[(*row, "elsewhere") for row in rows]])
    return folder


def fuse(*arguments):
    run = tutti_here("fuse", *arguments, "--json")
    assert run.exit_code == 0, run.output
    return json.loads(run.stdout)


def refused(*arguments):
    run = tutti_here("fuse", *arguments)
    assert run.exit_code == 2, run.output
    (line,) = run.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def fused(tmp_path_factory):
    scores = write_pool(tmp_path_factory.mktemp("fuse") / "scores", POOL)
    out, tables = scores.parent / "out", ["--tables", scores]
    result = fuse(*tables, "--out", out)
    return SimpleNamespace(scores=scores, tables=tables, out=out, result=result, weights=["--weights", out / RESULT])


def test_the_promised_object(fused, tmp_path):
    out, result = fused.out, fused.result
    assert {"method", "weights", "in_sample", "lomo", "ci"} <= set(result["delivered"])
    assert set(result["delivered"]["weights"]) == {"a", "b"}
    assert [*result["methods"]] == ["uniform", "best_single", "rank_average", "softmax", "greedy", "tpe", "evolution"]
    assert all(0 < of[figure] < 100 for of in result["methods"].values() for figure in ("lomo", "in_sample"))
    table, omega = read_table(out / FUSED), pytest.approx(result["delivered"]["in_sample"])
    assert json.loads(tutti_here("metrics", out, "--json").stdout)["omega"] == official_metrics(table).omega == omega
    assert result["transductive"] is is_transductive(table) is False
    assert sorted(p.name for p in out.iterdir()) == [FUSED, HELD_OUT, RESULT]
    before = (out / RESULT).stat().st_mtime_ns
    assert fuse(*fused.tables, "--out", out) == json.loads((out / RESULT).read_text()) == result
    assert "delivered" in tutti_here("fuse", *fused.tables, "--out", out).stdout
    assert (out / RESULT).stat().st_mtime_ns == before  # nothing is searched again
    folder = shutil.copytree(fused.scores, tmp_path / "scores", ignore=shutil.ignore_patterns("index.csv"))
    for _ in range(2):  # the first fusion is no table of the second
        of_folder = fuse("--tables", folder, "--out", folder)["delivered"]["table_weights"]
        assert set(of_folder) == {"g0", "g1", "p0", "o0"}


def test_sources_stand_side_by_side_under_names_of_their_own(fused, tmp_path):
    one, two = (shutil.copytree(fused.scores, tmp_path / name / "scores") for name in ("one", "two"))
    request = ["--tables", fused.out / FUSED, "--tables", one / "g1.parquet", "--tables", two / "g1.parquet"]
    loose = {name: [name] for name in ("fused", "scores-g1", "two-g1")}
    line = refused(*request, "--out", tmp_path / "out")
    assert f"{two / 'g1.parquet'} and {one / 'g1.parquet'} have the same name" in line
    shutil.copy(two / "g1.parquet", tmp_path / "two" / "g1.parquet")
    result = fuse(*request[:-1], tmp_path / "two" / "g1.parquet", "--tables", two, "--out", tmp_path / "out")
    a = {"good": ["g0", "g1"], "poor": ["p0"]}
    assert result["tree"] == {"a": a, "b": {"other": ["o0"]}, "tables": loose}
    assert "two sources are called scores" in refused("--tables", one, "--tables", two, "--out", tmp_path / "out")
    both = fuse("--tables", two, "--tables", one.rename(tmp_path / "first"), "--out", tmp_path / "out")["tree"]
    assert [*both] == ["scores-a", "scores-b", "first-a", "first-b"]
    assert both["first-a"] == {"good": ["first/g0", "first/g1"], "poor": ["first/p0"]}


def test_tables_without_training_rows_need_the_flag(fused, tmp_path, caplog):
    bare = {n: t.filter(pc.equal(t["split"], "test")).drop_columns("calibrated") for n, t in POOL.items()}
    request = ["--tables", write_pool(tmp_path / "bare", bare), "--out", tmp_path / "out"]
    line = refused(*request)
    assert line.count("0 training clips") == line.count(FLAG) == 1
    assert tutti_here("fuse", *request, FLAG).stdout.startswith("TRANSDUCTIVE")
    assert "transductive" in caplog.text
    assert refused(*request) == line  # though it is fused with the flag
    kept = write_pool(tmp_path / "kept", {"g0": read_table(tmp_path / "out" / FUSED)}, ROWS[:1])  # with its mark
    mixed = write_pool(tmp_path / "mixed", {**POOL, "o0": bare["o0"]})
    cases = [(mixed, 80, FLAG), (fused.scores, 160, FLAG), (kept, 80), (tmp_path / "bare", 80, FLAG, *fused.weights)]
    for folder, rows, *options in cases:
        out = tmp_path / "of" / folder.name
        assert fuse("--tables", folder, "--out", out, *options)["transductive"]
        assert read_table(out / FUSED).num_rows == rows


@pytest.mark.parametrize("scale", ["calibrated", "rank"])
@pytest.mark.parametrize("raw", [False, True])
def test_weights_go_to_an_evaluation_set(fused, tmp_path, scale, raw):
    weights = {"g0": 0.5, "g1": 0.25, "p0": 0.0, "o0": 0.25}
    delivered = {**fused.result["delivered"], "scale": scale, "table_weights": weights}
    (tmp_path / RESULT).write_text(json.dumps({**fused.result, "delivered": delivered}))
    hidden = {name: table for name, table in make_pool(("saw",), 10, labelled=False).items() if weights[name]}
    known = write_pool(tmp_path / "eval", {n: t.drop_columns(["calibrated"] * raw) for n, t in hidden.items()})
    applied = fuse("--weights", tmp_path / RESULT, "--tables", known, "--out", tmp_path / "fused")
    assert applied["table_weights"] == {name: weights[name] for name in hidden}
    table, expected = read_table(tmp_path / "fused" / FUSED), 0
    for name, member in hidden.items():
        score, train = member["score"].to_numpy(), member["split"].to_numpy() == "train"
        ranks = np.array([(score[train] < s).mean() + (score[train] == s).mean() / 2 for s in score])
        expected += weights[name] * (ranks if scale == "rank" else calibrate(member, score))
    assert table["score"].to_numpy() == pytest.approx(expected)
    assert table["calibrated"].null_count == 0


def test_changed_scores_beside_their_old_calibration_are_calibrated_anew(tmp_path, caplog):
    request = ["--tables", write_pool(tmp_path / "scores", POOL), "--out", tmp_path / "out"]
    fuse(*request)
    better = POOL["o0"].set_column(6, "score", make_table(("fan", "pump"), 10, train=40, separation=6.0)["score"])
    write_table(better, tmp_path / "scores" / "o0.parquet")
    weights = fuse(*request)["delivered"]["table_weights"]
    assert weights["o0"] == max(weights.values())
    assert caplog.text.count("o0: `calibrated` does not follow from `score` on fan, pump: recalibrated") == 2  # by each


def test_what_is_wrong_is_told_in_one_line(fused, tmp_path):
    out, weights, tables = ["--out", tmp_path / "out"], fused.weights, fused.tables
    for source in ([], [*tables, "--run", "x"], ["--tracking-uri", f"sqlite:///{tmp_path}/x.db"], weights):
        assert "give either --tables DIR, or --tracking-uri URI with --experiment" in refused(*source, *out)
    assert "no such folder" in refused("--tables", tmp_path / "none", *out)
    assert "index.csv: not there" in refused("--tables", tmp_path, *out)
    for path in (fused.out, fused.out / RESULT):
        assert "fusion lies there" in refused("--weights", path, *tables, "--out", fused.out)
    assert "gives a weight to g0, which is not there" in refused(*weights, "--tables", tmp_path, *out)
    assert "no.json: not there" in refused("--weights", tmp_path / "no.json", *tables, *out)
    assert "unknown system" in refused("s99", *tables, *out)
    for source in (tables, [*weights, *tables]):
        assert "has no score table there" in refused("demo", *source, *out)
    for told, rows, header in (
        ("line 6 names g0 a second time", [*ROWS, ("g0", "b", "again", "")], HEADER),
        ("line 6 names x0, and there is no", [*ROWS, ("x0", "b", "more", "")], HEADER),
        ("line 2 has no family", [("g0", "", "good", "")], HEADER),
        ("names no table", [], HEADER),
        ("line 3 has seed 0 of a/poor a second time", [ROWS[2], ("g1", "a", "poor", "0")], HEADER),
        ("no column table in its first line, which is 'name,family,config,seed,source'", [], ("name", *HEADER[1:])),
    ):
        assert told in refused("--tables", write_pool(tmp_path, POOL, rows, header), *out)
    for told, changed in (
        ("not all 0", {"table_weights": {"g0": 0}}),
        ("at least 0", {"table_weights": {"g0": -1}}),
        ("at least 0", {"weights": {"a": 3}}),
        ("the scale is as it was written", {"scale": "decibel"}),
    ):
        result = {**fused.result, "delivered": {**fused.result["delivered"], **changed}}
        (tmp_path / RESULT).write_text(json.dumps(result))
        assert told in refused("--weights", tmp_path, *tables, *out)


@pytest.mark.parametrize("file", ["index.csv", "g0.parquet", "g0.csv", RESULT])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example(content=b"[" * 100_000)
@example(content=b'{"delivered": {}}')
@given(content=st.binary() | st.text(alphabet='{}[]",:\n a').map(str.encode))
def test_whatever_bytes_stand_in_a_file_one_line_names_it(fused, tmp_path, file, content):
    folder = shutil.copytree(fused.scores, tmp_path / "scores", dirs_exist_ok=True)
    (folder / "g0.parquet").unlink()
    (folder / file).write_bytes(content)
    weights = ["--weights", folder / file] if file == RESULT else []
    assert str(folder / file) in refused(*weights, "--tables", folder, "--out", tmp_path / "out")


def test_a_system_takes_its_tables_and_weights_wherever_they_are(pair, tmp_path):
    run, other, embedding = tmp_path / "run", tmp_path / "other", PROJECTION.model_dump_json()
    pair.write(run / "branches", embedding=embedding)
    shutil.copytree(run / "branches", run / "mlartifacts")
    result = fuse(pair.file, "--tables", run, "--out", tmp_path / "out")
    assert sorted(result["sources"].values()) == sorted(map(str, (run / "branches").rglob("*.parquet")))
    result["delivered"].update(weights={"one": {"a": 0.5, "b": 0.5}}, scale="calibrated")
    (tmp_path / RESULT).write_text(json.dumps(result))
    pair.write(other)  # as an older tutti wrote them
    request = [pair.file, "--weights", tmp_path, "--tables", other, "--out", tmp_path / "applied"]
    assert [*fuse(*request)["table_weights"].values()] == [0.25, 0.25, 0.5]
    a, b, c = (calibrate(table, table["score"].to_numpy()) for table in pair.tables.values())
    assert read_table(tmp_path / "applied" / FUSED)["score"].to_numpy() == pytest.approx((a + b) / 4 + c / 2)
    result["delivered"]["weights"] = {"one": {"a": 1.0}}
    (tmp_path / RESULT).write_text(json.dumps(result))
    assert "its weights are not of this system's configurations" in refused(*request)
    shutil.copy(other / "0.parquet", other / "again.parquet")  # which is no other table
    assert "its weights are not" in refused(*request)
    again = read_table(other / "0.parquet")
    write_table(with_scores(again, 2 * again["score"].to_numpy(), None, metadata_of(again)), other / "again.parquet")
    assert "one/a/0 has 2 score tables" in refused(*request)


def test_a_stores_tables_become_a_folder_with_an_index(tmp_path, shared):
    uri, out, tables = empty_store(shared, tmp_path / "mlflow.db"), tmp_path / "fused", iter(POOL.values())
    one, two = (Ledger(tmp_path / name, shared, uri) for name in ("one", "two"))
    experiment = one.client.create_experiment(EXPERIMENT, artifact_location=str(tmp_path / "artifacts"))
    request = ["--out", out, "--tracking-uri", uri, "--experiment", EXPERIMENT]

    def add(ledger, name, system="s1"):
        finished_branch(ledger.out, name, next(tables), "knn-k2.5", tags={"system": system})
        assert ledger.outbox.close("FINISHED") == 0

    add(one, "baseline/log_mel/0", system="")
    assert "experiment 'out on data' has no finished branch" in refused(*request)
    assert "has no experiment 'none'" in refused(*request, "--experiment", "none")
    add(one, "near/arcface/0")
    add(one, "far/softmax/1")
    one.client.create_run(experiment, tags={"role": "branch", "system": "s1"}, run_name="near/half_sent/0")
    far, result = {"softmax": ["far/softmax/1"]}, fuse(*request)
    assert result["tree"] == {"far": far, "near": {"arcface": ["near/arcface/0"]}}
    assert fuse("--tables", out / "store_tables", "--out", out) == fuse(*request) == result
    add(two, "far/softmax/1")  # the same branch
    (run,) = two.client.search_runs([experiment], "attributes.run_name = 'two'")
    assert fuse(*request, "--run", run.info.run_id)["tree"] == {"far": far}
    assert "has no finished branch under run none" in refused(*request, "--run", "none")
    for ledger in (one, two):
        ledger.fused("s1", ["g0", "p0"], branches=[{"branch": "far/mine/7", "table": "far-softmax-1/knn-k2.5"}])
        assert ledger.outbox.close("FINISHED") == 0
    for of_run in (fuse(*request, "--run", run.info.run_id), fuse("s1", *request, "--run", run.info.run_id)):
        assert of_run["tree"] == {"far": {"mine": ["far/mine/7"]}}  # as its result says
    assert "has two runs of s1; choose one with --run ID" in refused(*request)


def test_a_system_is_fused_again_if_anything_has_changed_and_only_then(pair, tmp_path, monkeypatch):
    folder, report = tmp_path / "systems" / "pair", tmp_path / "report.html"

    def is_made(**changed):
        """Whether the result is written, and its report removed."""
        report.touch()
        before = (folder / RESULT).stat().st_mtime_ns
        assert pair.fused(tmp_path, **changed) == results.read_result(folder)
        assert report.exists() == ((folder / RESULT).stat().st_mtime_ns == before)
        return not report.exists()

    first, held_out = pair.fused(tmp_path), (folder / HELD_OUT).read_bytes()
    assert not is_made()
    for damage in (lambda: (folder / FUSED).write_bytes(b"half"), *((folder / f).unlink for f in (FUSED, HELD_OUT))):
        damage()
        assert is_made()
    assert (results.read_result(folder), (folder / HELD_OUT).read_bytes()) == (first, held_out)
    name, table = next(iter(pair.tables.items()))
    other = with_scores(table, table["score"].to_numpy(), 2 * table["calibrated"].to_numpy(), {})
    assert is_made(tables={**pair.tables, name: other})
    assert [is_made(baseline=baseline) for baseline in (table, table, other)] == [True, False, True]
    monkeypatch.setattr("orchestrator.fuse.result.FUSION_VERSION", -1)
    assert is_made(baseline=other)
    (tmp_path / RESULT).touch()  # as `tutti fuse` leaves it, which is no system of a run
    assert results.system_folders(tmp_path, ["pair", "pair"]) == results.result_folders(tmp_path) == [folder]
    assert results.result_folders(folder) == [folder]
    with pytest.raises(InputError, match="no results in it"):
        results.system_folders(folder)
    with pytest.raises(InputError, match="no result of system 'three'; there are pair"):
        results.system_folders(tmp_path, ["pair", "three"])


def test_a_result_has_its_baseline_its_omega_and_what_is_missing(pair, tmp_path):
    table = make_table(seed=5)
    result, omega = pair.fused(tmp_path, baseline=table), official_metrics(table).omega
    baseline, delivered, figures = result["baseline"], result["delivered"], results.rows_of_methods(result)
    assert (baseline["omega"], [*baseline["machines"]]) == (omega, ["fan", "pump"])
    members = [("one/a/0", "mahalanobis"), ("one/a/1", "mahalanobis"), ("one/b/0", "knn")]
    assert [(b["branch"], b["detector"]) for b in result["branches"]] == members
    assert (result["missing"], result["omega"]) == ([], delivered["lomo"])
    chosen = delivered["method"]  # which has no second row
    names = [name.replace("_", " ") for name in [*({*result["methods"]} - {chosen}), f"{chosen}, delivered"]]
    assert sorted(name for name, *_ in figures) == sorted(["log-mel baseline", *names])
    assert (figures[0][1:], figures[-1][1:]) == ((omega, omega), (delivered["in_sample"], delivered["lomo"]))
    assert f"{delivered['lomo']:.2f} %" in result["headline"]
    assert result["headline"].count("%") == 1
    below = results.below_baseline({**result, "omega": omega - 1})
    assert below.startswith(f"pair is below the log-mel baseline, which needs no training ({omega - 1:.2f} against")
    assert results.below_baseline({**result, "omega": omega}) is None
    (tmp_path / "x.yaml").write_text(f"name: x\nsubsystems: {{{results.ADDED_BASELINE}}}")  # as is advised then
    plan = make_plan([load_system(str(tmp_path / "x.yaml"))], pair.data)
    assert plan.trees["x"] == {"statistics": {"log_mel": [plan.baseline]}}
    alone = pair.fused(tmp_path, plan=without(pair.plan, {pair.names[-1]}))
    assert alone["missing"] == ["one/b/0"]
    assert alone["headline"].endswith(" % on held-out machines, all choices repeated without each: one/a alone")
    assert [name for name, *_ in results.rows_of_methods(alone)] == ["delivered"]  # all methods give the same
    one = pair.fused(tmp_path, pair.made(["fan"]))  # of fewer labels, which tell less
    assert one["delivered"]["lomo"] is None
    assert one["omega"] == one["delivered"]["in_sample"] > 0
    none = pair.fused(tmp_path, pair.made(labelled=False))
    assert none["omega"] is none["branches"][0]["omega"] is none["delivered"]["in_sample"] is None
    assert {path.name for path in (tmp_path / "systems" / "pair").iterdir()} == {FUSED, RESULT}


def test_a_headline_has_one_figure_and_says_how_it_was_got_and_of_how_many_configurations():
    delivered = {"method": "softmax", "strength": "temperature 0.1", "weights": {"a": {"x": 0.2, "y": 0.8}}}
    machines = {"lomo": {"fan": {}, "pump": {}}}
    result = {"transductive": False, "delivered": delivered, "omega": 63.44, "machines": machines}
    how = "Omega 63.44 % on held-out machines, all choices repeated without each"
    weights = "softmax weights (temperature 0.1)"
    assert results.headline(result) == f"{how}: {weights} of all 2 configurations"
    delivered["weights"]["b"] = {"z": 0.0}
    assert results.headline(result) == f"{how}: {weights} of 2 of 3 configurations"
    result["machines"] = {"lomo": None, "in_sample": {"fan": {}}}
    delivered |= {"method": "rank_average", "strength": ""}
    single = "Omega 63.44 % on fan, the only machine with labels: rank average of 2 of 3 configurations"
    assert results.headline(result) == single
