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

ROWS = [("g0", "a", "good", ""), ("g1", "a", "good", ""), ("p0", "a", "poor", "0"), ("o0", "b", "other", "0")]
HEADER = ("table", "family", "config", "seed")


def write_pool(folder, tables, rows=ROWS, header=HEADER):
    folder.mkdir(exist_ok=True)
    for name, table in tables.items():
        write_table(table, folder / f"{name}.parquet")
    with open(folder / "index.csv", "w", newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
        csv.writer(file).writerows([(*header, "source"), *[(*row, "elsewhere") for row in rows]])
    return folder


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


def refused(*arguments):
    """The one line that a refusal says."""
    run = tutti_here("fuse", *arguments)
    assert run.exit_code == 2, run.output
    (line,) = run.stderr.splitlines()
    return line


@pytest.fixture(scope="module")
def fused(scores):
    """The folder of a fusion, and its result."""
    return scores.parent / "out", fuse("--tables", scores, "--out", scores.parent / "out")


def test_the_promised_object(fused, scores):
    out, result = fused
    assert {"method", "weights", "in_sample", "lomo", "ci"} <= set(result["delivered"])
    assert set(result["delivered"]["weights"]) == {"a", "b"}
    for name in ("uniform", "best_single", "rank_average", "softmax", "greedy", "tpe", "evolution"):
        assert 0 < result["methods"][name]["lomo"] < 100
        assert 0 < result["methods"][name]["in_sample"] < 100
    table, omega = read_table(out / "fused.parquet"), pytest.approx(result["delivered"]["in_sample"])
    assert json.loads(tutti_here("metrics", out, "--json").stdout)["omega"] == official_metrics(table).omega == omega
    assert not result["transductive"]
    assert not is_transductive(table)
    assert sorted(p.name for p in out.iterdir()) == ["fused.parquet", "held_out.parquet", "result.json"]
    before = (out / "result.json").stat().st_mtime_ns
    assert fuse("--tables", scores, "--out", out) == json.loads((out / "result.json").read_text()) == result
    assert (out / "result.json").stat().st_mtime_ns == before  # nothing is searched again
    assert "delivered" in tutti_here("fuse", "--tables", scores, "--out", out).stdout


@pytest.mark.slow
def test_ray_gives_the_same(fused, scores, tmp_path):
    run = tutti("fuse", "--tables", scores, "--out", tmp_path, "--address", "local", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) | {"made": {}} == fused[1] | {"made": {}}


def test_tables_without_training_rows_need_the_flag(fused, scores, pool, tmp_path, caplog):
    """As score tables are published: without training rows and calibration."""
    bare = {n: t.filter(pc.equal(t["split"], "test")).drop_columns("calibrated") for n, t in pool.items()}
    request = ["--tables", write_pool(tmp_path / "bare", bare), "--out", tmp_path / "out"]
    flag, line = "--transductive-normalisation", refused(*request)
    assert flag in line
    assert "0 training clips" in line
    assert tutti_here("fuse", *request, flag).stdout.startswith("TRANSDUCTIVE")
    assert "transductive" in caplog.text
    marked = read_table(tmp_path / "out" / "fused.parquet")
    assert is_transductive(marked)
    assert refused(*request) == line  # though it is fused with the flag
    weights = ["--weights", fused[0] / "result.json"]
    kept = write_pool(tmp_path / "kept", {"g0": marked}, ROWS[:1])  # what has the mark keeps it
    # Of tables of both kinds the test rows are fused, of tables with training rows all.
    mixed = write_pool(tmp_path / "mixed", {**pool, "o0": bare["o0"]})
    for folder, rows, options in (
        *[(mixed, 80, [flag]), (scores, 160, [flag]), (kept, 80, [])],
        (tmp_path / "bare", 80, [flag, *weights]),
    ):
        out = tmp_path / "of" / folder.name
        assert fuse("--tables", folder, "--out", out, *options)["transductive"]
        assert read_table(out / "fused.parquet").num_rows == rows


@pytest.mark.parametrize("scale", ["calibrated", "rank"])
@pytest.mark.parametrize("raw", [False, True])
def test_weights_go_to_an_evaluation_set(fused, tmp_path, scale, raw):
    weights = {"g0": 0.5, "g1": 0.25, "p0": 0.0, "o0": 0.25}
    delivered = {**fused[1]["delivered"], "scale": scale, "table_weights": weights}
    (tmp_path / "result.json").write_text(json.dumps({**fused[1], "delivered": delivered}))
    hidden = {name: table for name, table in make_pool(("saw",), 10, labelled=False).items() if weights[name]}
    known = write_pool(tmp_path / "eval", {n: t.drop_columns(["calibrated"] * raw) for n, t in hidden.items()})
    applied = fuse("--weights", tmp_path / "result.json", "--tables", known, "--out", tmp_path / "fused")
    assert applied["table_weights"] == {name: weights[name] for name in hidden}
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


def test_what_is_wrong_is_told_in_one_line(scores, fused, pool, tmp_path):
    out, weights = ["--out", tmp_path / "out"], ["--weights", fused[0] / "result.json"]
    for source in ([], ["--tables", scores, "--run", "x"], ["--tracking-uri", f"sqlite:///{tmp_path}/x.db"], weights):
        assert "give either --tables DIR, or --tracking-uri URI with --experiment" in refused(*source, *out)
    assert "no such folder" in refused("--tables", tmp_path / "none", *out)
    assert "index.csv: not there" in refused("--tables", tmp_path, *out)
    for path in (fused[0], fused[0] / "result.json"):
        assert "fusion lies there" in refused("--weights", path, "--tables", scores, "--out", fused[0])
    assert "gives a weight to g0, which is not there" in refused(*weights, "--tables", tmp_path, *out)
    assert "no.json: not there" in refused("--weights", tmp_path / "no.json", "--tables", scores, *out)
    assert "unknown system" in refused("s99", "--tables", scores, *out)
    assert "has no score table there" in refused("demo", "--tables", scores, *out)
    assert "has no score table there" in refused("demo", *weights, "--tables", scores, *out)
    for rows, header, told in (
        ([*ROWS, ("g0", "b", "again", "")], HEADER, "line 6 names g0 a second time"),
        ([*ROWS, ("x0", "b", "more", "")], HEADER, "line 6 names x0, and there is no"),
        ([("g0", "", "good", "")], HEADER, "line 2 has no family"),
        ([], HEADER, "names no table"),
        ([ROWS[2], ("g1", "a", "poor", "0")], HEADER, "line 3 has seed 0 of a/poor a second time"),
        (ROWS, ("Table", *HEADER[1:]), "no column table in its first line, which is 'Table,family,config,seed,source'"),
    ):
        assert told in refused("--tables", write_pool(tmp_path / "wrong", pool, rows, header), *out)
    (tmp_path / "changed").mkdir()
    for changed, told in (
        ({"table_weights": {"g0": 0}}, "not all 0"),
        ({"table_weights": {"g0": -1}}, "at least 0"),
        ({"weights": {"a": 3}}, "at least 0"),
        ({"scale": "decibel"}, "the scale is as it was written"),
    ):
        result = {**fused[1], "delivered": {**fused[1]["delivered"], **changed}}
        (tmp_path / "changed" / "result.json").write_text(json.dumps(result))
        assert told in refused("--weights", tmp_path / "changed", "--tables", scores, *out)


@pytest.mark.parametrize("file", ["index.csv", "g0.parquet", "g0.csv", "result.json"])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@example(content=b"[" * 100_000)
@example(content=b'{"delivered": {}}')
@given(content=st.binary() | st.text(alphabet='{}[]",:\n a').map(str.encode))
def test_whatever_bytes_stand_in_a_file_one_line_names_it(scores, tmp_path, file, content):
    folder = shutil.copytree(scores, tmp_path / "scores", dirs_exist_ok=True)
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
    run, other, embedding = tmp_path / "run", tmp_path / "other", PROJECTION.model_dump_json()
    pair.write(lambda name: run / "branches" / f"{name.replace('/', '/tables/')}.parquet", embedding=embedding)
    shutil.copytree(run / "branches", run / "mlartifacts")
    result = fuse(pair.file, "--tables", run, "--out", tmp_path / "out")
    assert sorted(result["sources"].values()) == sorted(map(str, (run / "branches").rglob("*.parquet")))
    result["delivered"].update(weights={"one": {"a": 0.5, "b": 0.5}}, scale="calibrated")
    (tmp_path / "result.json").write_text(json.dumps(result))
    pair.write(lambda name: other / f"{pair.names.index(name)}.parquet")  # as an older tutti wrote them
    request = [pair.file, "--weights", tmp_path, "--tables", other, "--out", tmp_path / "applied"]
    assert [*fuse(*request)["table_weights"].values()] == [0.25, 0.25, 0.5]
    a, b, c = (calibrate(table, table["score"].to_numpy()) for table in pair.tables.values())
    applied = read_table(tmp_path / "applied" / "fused.parquet")["score"].to_numpy()
    assert applied == pytest.approx((a + b) / 4 + c / 2)
    result["delivered"]["weights"] = {"one": {"a": 1.0}}
    (tmp_path / "result.json").write_text(json.dumps(result))
    assert "its weights are not of this system's configurations" in refused(*request)
    shutil.copy(other / "0.parquet", other / "again.parquet")
    assert "one/a/0 has 2 score tables" in refused(*request)
