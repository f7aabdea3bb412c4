"""`tutti fuse` on tables in a folder, and the weights of a result on other tables."""

import csv
import json
import shutil

import numpy as np
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from branches.spec import PROJECTION
from scoring.calibration import calibrate
from scoring.metrics import official_metrics
from scoring.table import is_transductive, read_table, write_table
from tests.commands import tutti, tutti_here
from tests.fusion.pools import make_pool
from tests.tables import make_table

EMBEDDING = PROJECTION.model_dump_json()
ROWS = [("g0", "a", "good", "0.0"), ("g1", "a", "good", "1.0"), ("p0", "a", "poor", ""), ("o0", "b", "other", "")]
HEADER = ("table", "family", "config", "seed")


def write_pool(folder, tables, rows=ROWS, header=HEADER):
    folder.mkdir(exist_ok=True)
    for name, table in tables.items():
        write_table(table, folder / f"{name}.parquet")
    with open(folder / "index.csv", "w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
        csv.writer(file).writerows([(*header, "source"), *[(*row, "elsewhere") for row in rows]])
    return folder


def without_training(table):
    return table.filter(pc.equal(table["split"], "test"))


@pytest.fixture(scope="module")
def pool():
    return make_pool(("fan", "pump"), 10)


@pytest.fixture(scope="module")
def scores(tmp_path_factory, pool):
    return write_pool(tmp_path_factory.mktemp("fuse") / "scores", pool)


def fuse(*arguments):
    run = tutti_here("fuse", *arguments, "--json")
    assert run.exit_code == 0, run.output
    return json.loads(run.stdout)


@pytest.fixture(scope="module")
def fused(scores):
    """The folder of a fusion, and its result."""
    return scores.parent / "out", fuse("--tables", scores, "--out", scores.parent / "out")


def refused(*arguments):
    """The one line that a refusal says."""
    run = tutti_here("fuse", *arguments)
    assert run.exit_code == 2, run.output
    (line,) = run.stderr.splitlines()
    return line


def test_the_promised_object(fused, scores):
    out, result = fused
    assert {"method", "weights", "in_sample", "lomo", "ci"} <= set(result["delivered"])
    for name in ("uniform", "best_single", "rank_average", "softmax", "greedy", "tpe", "evolution"):
        assert 0 < result["methods"][name]["lomo"] < 100
        assert 0 < result["methods"][name]["in_sample"] < 100
    table = read_table(out / "fused.parquet")
    assert official_metrics(table).omega == pytest.approx(result["delivered"]["in_sample"])
    assert not result["transductive"]
    assert not is_transductive(table)
    assert sorted(p.name for p in out.iterdir()) == ["fused.parquet", "held_out.parquet", "result.json"]
    assert set(result["delivered"]["weights"]) == {"a", "b"}
    measured = json.loads(tutti_here("metrics", out, "--json").stdout)
    assert measured["omega"] == pytest.approx(result["delivered"]["in_sample"])
    before = (out / "result.json").stat().st_mtime_ns
    assert fuse("--tables", scores, "--out", out) == json.loads((out / "result.json").read_text()) == result
    assert (out / "result.json").stat().st_mtime_ns == before  # nothing is searched again
    assert "delivered" in tutti_here("fuse", "--tables", scores, "--out", out).stdout


@pytest.mark.slow
def test_ray_gives_the_same(fused, scores, tmp_path):
    run = tutti("fuse", "--tables", scores, "--out", tmp_path, "--address", "local", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) | {"made": {}} == fused[1] | {"made": {}}


def test_tables_without_training_rows_need_the_flag(scores, pool, tmp_path, caplog):
    """As score tables are published: without training rows and calibration."""
    bare = {name: without_training(table).drop_columns("calibrated") for name, table in pool.items()}
    request = ["--tables", write_pool(tmp_path / "bare", bare), "--out", tmp_path / "out"]
    flag = "--transductive-normalisation"
    assert all(word in refused(*request) for word in (flag, "0 training clips"))
    run = tutti_here("fuse", *request, flag)
    assert run.stdout.startswith("TRANSDUCTIVE")
    assert "transductive" in caplog.text
    assert json.loads((tmp_path / "out" / "result.json").read_text())["transductive"]
    fused = read_table(tmp_path / "out" / "fused.parquet")
    assert is_transductive(fused)
    assert flag in refused(*request)  # still without the flag
    # Of tables of both kinds the test rows are fused, of tables with training rows all.
    one_bare = write_pool(tmp_path / "mixed", {**pool, "o0": bare["o0"]})
    for folder, rows in ((one_bare, 80), (scores, 160)):
        assert fuse("--tables", folder, "--out", tmp_path / "marked", flag)["transductive"]
        marked = read_table(tmp_path / "marked" / "fused.parquet")
        assert marked.num_rows == rows
    again = write_pool(tmp_path / "again", {"g0": fused}, ROWS[:1])  # what has the mark keeps it
    assert fuse("--tables", again, "--out", tmp_path / "last")["transductive"]
    weights = ["--weights", scores.parent / "out" / "result.json"]
    assert fuse(*weights, "--tables", tmp_path / "bare", "--out", tmp_path / "w", flag)["transductive"]


@pytest.mark.parametrize("scale", ["calibrated", "rank"])
@pytest.mark.parametrize("columns", [[], ["calibrated"]], ids=["calibrated", "raw"])
def test_weights_go_to_an_evaluation_set(fused, tmp_path, scale, columns):
    result = json.loads((fused[0] / "result.json").read_text())
    weights = {"g0": 0.5, "g1": 0.25, "p0": 0.0, "o0": 0.25}
    result["delivered"].update(scale=scale, table_weights=weights)
    (tmp_path / "result.json").write_text(json.dumps(result))
    hidden = {n: t.drop_columns(columns) for n, t in make_pool(("saw",), 10, labelled=False).items() if n != "p0"}
    known = write_pool(tmp_path / "eval", hidden)
    applied = fuse("--weights", tmp_path / "result.json", "--tables", known, "--out", tmp_path / "fused")
    assert applied["table_weights"] == {name: weight for name, weight in weights.items() if weight > 0}
    table, expected = read_table(tmp_path / "fused" / "fused.parquet"), 0
    for name, member in hidden.items():
        score, train = member["score"].to_numpy(), member["split"].to_numpy() == "train"
        ranks = np.array([(score[train] < s).mean() + (score[train] == s).mean() / 2 for s in score])
        expected += weights[name] * (ranks if scale == "rank" else calibrate(member, score))
    assert table["score"].to_numpy() == pytest.approx(expected)
    assert table["calibrated"].null_count == 0
    assert "no result of a fusion" in tutti_here("report", tmp_path / "fused").stderr  # nothing was estimated


def test_changed_scores_beside_their_old_calibration_are_calibrated_anew(pool, tmp_path, caplog):
    request = ["--tables", write_pool(tmp_path / "scores", pool), "--out", tmp_path / "out"]
    fuse(*request)
    caplog.clear()
    better = pool["o0"].set_column(6, "score", make_table(("fan", "pump"), 10, train=40, separation=6.0)["score"])
    write_table(better, tmp_path / "scores" / "o0.parquet")
    weights = fuse(*request)["delivered"]["table_weights"]
    assert weights["o0"] == max(weights.values())
    assert caplog.text.count("o0: `calibrated` does not follow from `score` on fan, pump: recalibrated") == 1


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([*ROWS, ("g0", "b", "again", "")], HEADER, "line 6 names g0 a second time"),
        ([*ROWS, ("x0", "b", "more", "")], HEADER, "line 6 names x0, and there is no"),
        ([("g0", "", "good", "")], HEADER, "line 2 has no family"),
        ([], HEADER, "names no table"),
        ([ROWS[0], ("g1", "a", "good", "0.0")], HEADER, "line 3 has seed 0.0 of a/good a second time"),
        (ROWS, ("Table", *HEADER[1:]), "no column table in its first line, which is 'Table,family,config,seed,source'"),
    ],
)
def test_a_wrong_index_is_told(pool, tmp_path, rows, header, message):
    folder = write_pool(tmp_path / "scores", pool, rows, header)
    assert message in refused("--tables", folder, "--out", tmp_path / "out")


def test_a_wrong_request_is_told(scores, fused, tmp_path):
    out = ["--out", tmp_path / "out"]
    weights = ["--weights", fused[0] / "result.json"]
    for source in ([], ["--tables", scores, "--run", "x"], ["--tracking-uri", f"sqlite:///{tmp_path}/x.db"], weights):
        assert "give either --tables DIR, or --tracking-uri URI with --experiment" in refused(*source, *out)
    assert "no such folder" in refused("--tables", tmp_path / "none", *out)
    assert "index.csv: not there" in refused("--tables", tmp_path, *out)
    assert "fusion lies there" in refused(*weights, "--tables", scores, "--out", fused[0])
    assert "gives a weight to g0, which is not there" in refused(*weights, "--tables", tmp_path, *out)
    assert "no.json: not there" in refused("--weights", tmp_path / "no.json", "--tables", scores, *out)
    assert "unknown system" in refused("s99", "--tables", scores, *out)
    assert "has no score table there" in refused("demo", "--tables", scores, *out)
    assert "has no score table there" in refused("demo", *weights, "--tables", scores, *out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table_weights": {"g0": 0}}, "not all 0"),
        ({"table_weights": {"g0": -1}}, "at least 0"),
        ({"weights": {"a": 3}}, "at least 0"),
        ({"scale": "decibel"}, "the scale is as it was written"),
        (None, "no result of a fusion, damaged or"),
    ],
)
def test_weights_that_were_changed_are_checked(scores, fused, tmp_path, change, message):
    result = json.loads((fused[0] / "result.json").read_text())
    result["delivered"].update(change or {})
    (tmp_path / "mine.json").write_text(json.dumps(result if change else {"delivered": result["delivered"]}))
    assert message in refused("--weights", tmp_path / "mine.json", "--tables", scores, "--out", tmp_path / "out")


@pytest.mark.parametrize("file", ["index.csv", "g0.parquet", "g0.csv", "result.json"])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example(content=b"[" * 100_000)
@given(content=st.binary() | st.text(alphabet='{}[]",:\n a').map(str.encode))
def test_whatever_bytes_stand_in_a_file_one_line_names_it(scores, tmp_path, file, content):
    folder = tmp_path / "scores"
    if not folder.exists():
        shutil.copytree(scores, folder)
        (folder / "g0.parquet").unlink()
    (folder / file).write_bytes(content)
    weights = ["--weights", folder / file] if file == "result.json" else []
    assert str(folder / file) in refused(*weights, "--tables", folder, "--out", tmp_path / "out")


def test_a_fusion_is_no_table_of_the_folder_that_it_is_in(scores, tmp_path):
    folder = shutil.copytree(scores, tmp_path / "scores", ignore=shutil.ignore_patterns("index.csv"))
    first, again = (fuse("--tables", folder, "--out", folder) for _ in "ab")
    assert first == again
    assert set(again["delivered"]["table_weights"]) == {"g0", "g1", "p0", "o0"}


def test_a_system_takes_its_tables_and_weights_wherever_they_are(pair, tmp_path):
    """From a run's ledger, and by the weights of configurations from a folder where all have other names."""
    run, other = tmp_path / "run", tmp_path / "other"
    pair.write(lambda name: run / "branches" / f"{name.replace('/', '/tables/')}.parquet", embedding=EMBEDDING)
    shutil.copytree(run / "branches", run / "mlartifacts")
    result = fuse(pair.file, "--tables", run, "--out", tmp_path / "out")
    assert sorted(result["sources"].values()) == sorted(map(str, (run / "branches").rglob("*.parquet")))
    result["delivered"].update(weights={"one": {"a": 0.5, "b": 0.5}}, scale="calibrated")
    (tmp_path / "weights.json").write_text(json.dumps(result))
    pair.write(lambda name: other / f"{list(pair.tables).index(name)}.parquet")  # as an older tutti wrote them
    request = [pair.file, "--weights", tmp_path / "weights.json", "--tables", other, "--out", tmp_path / "applied"]
    assert [*fuse(*request)["table_weights"].values()] == [0.25, 0.25, 0.5]
    a, b, c = (calibrate(table, table["score"].to_numpy()) for table in pair.tables.values())
    applied = read_table(tmp_path / "applied" / "fused.parquet")["score"].to_numpy()
    assert applied == pytest.approx((a + b) / 4 + c / 2)
    shutil.copy(other / "0.parquet", other / "again.parquet")
    assert "one/a/0 has 2 score tables" in refused(*request)
    result["delivered"]["weights"] = {"one": {"a": 1.0}}
    (tmp_path / "weights.json").write_text(json.dumps(result))
    (other / "again.parquet").unlink()
    assert "its weights are not of this system's configurations" in refused(*request)
