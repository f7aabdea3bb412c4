import csv
import json
import shutil

import numpy as np
import pyarrow as pa
import pytest

from scoring.calibration import calibrate
from scoring.metrics import official_metrics
from scoring.table import conform, is_transductive, read_table, write_table
from tests.commands import tutti, tutti_here
from tests.fusion.pools import make_pool
from tests.tables import make_table

ROWS = [("g0", "a", "good", "0.0"), ("g1", "a", "good", "1.0"), ("p0", "a", "poor", ""), ("o0", "b", "other", "")]


def write_index(folder, rows=ROWS, header=("table", "family", "config", "seed")):
    with open(folder / "index.csv", "w", newline="") as file:
        csv.writer(file).writerows([(*header, "source"), *[(*row, "elsewhere") for row in rows]])


def write_pool(folder, tables):
    folder.mkdir()
    for name, table in tables.items():
        write_table(table, folder / f"{name}.parquet")
    write_index(folder)
    return folder


def without_training(table):
    return conform(table.filter(pa.compute.equal(table["split"], "test")))


@pytest.fixture(scope="module")
def scores(tmp_path_factory):
    return write_pool(tmp_path_factory.mktemp("fuse") / "scores", make_pool(("fan", "pump"), 10))


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
    """As score tables are published: without training rows and calibration."""
    pool = {n: without_training(t).drop_columns("calibrated") for n, t in make_pool(("fan", "pump"), 10).items()}
    return write_pool(tmp_path_factory.mktemp("bare") / "scores", pool)


@pytest.fixture(scope="module")
def fused(scores):
    out = scores.parent / "out"
    run = tutti("fuse", "--tables", scores, "--out", out, "--json")
    assert run.returncode == 0, run.stderr
    return out, json.loads(run.stdout)


def refused(*arguments):
    run = tutti_here("fuse", *arguments)
    assert run.exit_code == 2, run.output
    assert len(run.stderr.splitlines()) == 1
    return run.stderr


def test_the_promised_object(fused):
    out, result = fused
    assert {"method", "weights", "in_sample", "lomo", "ci"} <= set(result["delivered"])
    for name in ("uniform", "best_single", "rank_average", "softmax", "greedy", "tpe", "evolution"):
        assert 0 < result["methods"][name]["lomo"] < 100
        assert 0 < result["methods"][name]["in_sample"] < 100
    table = read_table(out / "fused.parquet")
    assert official_metrics(table).omega == pytest.approx(result["delivered"]["in_sample"])
    assert not result["transductive"]
    assert not is_transductive(table)
    assert json.loads((out / "result.json").read_text()) == result
    assert sorted(p.name for p in out.iterdir()) == ["fused.parquet", "held_out.parquet", "result.json"]
    assert set(result["delivered"]["weights"]) == {"a", "b"}
    measured = json.loads(tutti_here("metrics", out, "--json").stdout)
    assert measured["omega"] == pytest.approx(result["delivered"]["in_sample"])


def test_again_nothing_is_searched(fused, scores):
    out, result = fused
    before = (out / "result.json").stat().st_mtime_ns
    again = tutti_here("fuse", "--tables", scores, "--out", out, "--json")
    assert json.loads(again.stdout) == result
    assert (out / "result.json").stat().st_mtime_ns == before
    assert "delivered" in tutti_here("fuse", "--tables", scores, "--out", out).stdout


def test_a_lost_table_of_a_fusion_is_made_again(fused, scores, tmp_path):
    out = shutil.copytree(fused[0], tmp_path / "out")
    held_out = (out / "held_out.parquet").read_bytes()
    (out / "held_out.parquet").unlink()
    assert tutti_here("fuse", "--tables", scores, "--out", out).exit_code == 0
    assert (out / "held_out.parquet").read_bytes() == held_out


def test_ray_gives_the_same(fused, scores, tmp_path):
    run = tutti("fuse", "--tables", scores, "--out", tmp_path, "--address", "local", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) | {"made": {}} == fused[1] | {"made": {}}


def test_tables_without_training_rows_need_the_flag(bare, tmp_path):
    message = refused("--tables", bare, "--out", tmp_path)
    assert "--transductive-normalisation" in message
    assert "0 training clips" in message
    run = tutti("fuse", "--tables", bare, "--out", tmp_path, "--transductive-normalisation")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("TRANSDUCTIVE")
    assert "warning" in run.stderr
    assert "transductive" in run.stderr
    assert json.loads((tmp_path / "result.json").read_text())["transductive"]
    assert is_transductive(read_table(tmp_path / "fused.parquet"))


def test_weights_go_to_an_evaluation_set(fused, tmp_path):
    out, result = fused
    hidden = make_pool(("saw",), 10, labelled=False)
    known = write_pool(tmp_path / "eval", hidden)
    run = tutti_here("fuse", "--weights", out / "result.json", "--tables", known, "--out", tmp_path / "fused", "--json")
    assert run.exit_code == 0, run.output
    applied = json.loads(run.stdout)
    weights = result["delivered"]["table_weights"]
    assert applied["table_weights"] == {name: w for name, w in weights.items() if w > 0}
    table = read_table(tmp_path / "fused" / "fused.parquet")
    assert "no result of a fusion" in tutti_here("report", tmp_path / "fused").stderr  # nothing was estimated
    expected = sum(w * calibrate(hidden[name], hidden[name]["score"].to_numpy()) for name, w in weights.items())
    assert table["score"].to_numpy() == pytest.approx(expected)
    assert table["calibrated"].null_count == 0


def test_ranks_go_to_an_evaluation_set(fused, tmp_path):
    result = json.loads((fused[0] / "result.json").read_text())
    result["delivered"].update(scale="rank", table_weights=dict.fromkeys(result["delivered"]["table_weights"], 0.25))
    (tmp_path / "result.json").write_text(json.dumps(result))
    hidden = make_pool(("saw",), 10, labelled=False)
    known = write_pool(tmp_path / "eval", hidden)
    run = tutti_here("fuse", "--weights", tmp_path / "result.json", "--tables", known, "--out", tmp_path / "fused")
    assert run.exit_code == 0, run.output
    train = {name: table["score"].to_numpy()[table["split"].to_numpy() == "train"] for name, table in hidden.items()}
    ranks = [
        [(train[n] < s).mean() + (train[n] == s).mean() / 2 for s in t["score"].to_numpy()] for n, t in hidden.items()
    ]
    np.testing.assert_allclose(read_table(tmp_path / "fused" / "fused.parquet")["score"], np.mean(ranks, axis=0))


def test_changed_scores_beside_their_old_calibration_are_calibrated_anew(tmp_path, caplog):
    pool = make_pool(("fan", "pump"), 10)
    folder = write_pool(tmp_path / "scores", pool)
    better = pool["o0"].set_column(6, "score", make_table(("fan", "pump"), 10, train=40, separation=6.0)["score"])
    write_table(better, folder / "o0.parquet")
    run = tutti_here("fuse", "--tables", folder, "--out", tmp_path / "out", "--json")
    assert run.exit_code == 0, run.output
    delivered = json.loads(run.stdout)["delivered"]
    assert delivered["table_weights"]["o0"] == max(delivered["table_weights"].values())
    assert "o0: `calibrated` does not follow from `score` on fan, pump: recalibrated" in caplog.text


def test_scores_without_calibration_are_calibrated_on_their_training_rows(scores, fused, tmp_path):
    raw = {n: t.drop_columns("calibrated") for n, t in make_pool(("fan", "pump"), 10).items()}
    folder = write_pool(tmp_path / "raw", raw)
    weights = fused[0] / "result.json"
    run = tutti_here("fuse", "--weights", weights, "--tables", folder, "--out", tmp_path / "out", "--json")
    assert run.exit_code == 0, run.output


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([*ROWS, ("g0", "b", "again", "")], "line 6 names g0 a second time"),
        ([*ROWS, ("x0", "b", "more", "")], "line 6 names x0, and there is no"),
        ([("g0", "", "good", "")], "line 2 has no family"),
        ([], "names no table"),
        ([ROWS[0], ("g1", "a", "good", "0.0")], "line 3 has seed 0.0 of a/good a second time"),
    ],
)
def test_a_wrong_index_is_told(tmp_path, rows, message):
    folder = write_pool(tmp_path / "scores", {"g0": make_table()})
    write_index(folder, rows)
    for name in ("g1", "p0", "o0"):
        write_table(make_table(), folder / f"{name}.parquet")
    assert message in refused("--tables", folder, "--out", tmp_path / "out")


def test_tables_that_do_not_fit_are_told(tmp_path):
    pool = make_pool(("fan", "pump"), 4)
    folder = write_pool(tmp_path / "scores", pool)
    write_table(make_table(("fan",), 4, 40), folder / "o0.parquet")
    assert "o0 has no machine pump, which g0 has" in refused("--tables", folder, "--out", tmp_path / "out")
    write_table(pool["o0"].slice(1), folder / "o0.parquet")
    assert "o0 lacks fan/test/source_anomaly_0000.wav" in refused("--tables", folder, "--out", tmp_path / "out")


def test_a_wrong_request_is_told(scores, fused, tmp_path):
    out = ["--out", tmp_path / "out"]
    weights = ["--weights", fused[0] / "result.json"]
    for source in ([], ["--tables", scores, "--run", "x"], ["--tracking-uri", f"sqlite:///{tmp_path}/x.db"]):
        assert "give either --tables DIR, or --tracking-uri URI with --experiment" in refused(*source, *out)
    assert "give either --tables DIR" in refused(*weights, *out)
    assert "no such folder" in refused("--tables", tmp_path / "none", *out)
    assert "index.csv: not there" in refused("--tables", tmp_path, *out)
    assert "fusion lies there" in refused(*weights, "--tables", scores, "--out", fused[0])
    assert "gives a weight to g0, which is not there" in refused(*weights, "--tables", tmp_path, *out)
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
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(result if change else {"delivered": result["delivered"]}))
    assert message in refused("--weights", path, "--tables", scores, "--out", tmp_path / "out")
    assert "not there" in refused("--weights", tmp_path / "no.json", "--tables", scores, "--out", tmp_path / "out")


def test_a_fusion_is_no_table_of_the_folder_that_it_is_in(scores, tmp_path):
    folder = tmp_path / "scores"
    shutil.copytree(scores, folder, ignore=shutil.ignore_patterns("index.csv"))
    first, again = (json.loads(tutti_here("fuse", "--tables", folder, "--out", folder, "--json").stdout) for _ in "ab")
    assert first == again
    assert set(again["delivered"]["table_weights"]) == {"g0", "g1", "p0", "o0"}


def test_another_header_is_told(scores, tmp_path):
    write_index(tmp_path, header=("Table", "family", "config", "seed"))
    message = refused("--tables", tmp_path, "--out", tmp_path / "out")
    assert "no column table in its first line, which is 'Table,family,config,seed,source'" in message
