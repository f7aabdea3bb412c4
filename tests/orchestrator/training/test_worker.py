"""What one branch's process does: what is there already costs nothing again, and a record commits what was made."""

import shutil
from dataclasses import replace

import numpy as np
import pytest

from branches.backbones import BACKBONES
from branches.checkpoint_files import SMALL, SMALL_SHA256, lay_out
from branches.spec import BranchSpec
from orchestrator import plan as planning
from orchestrator.ledger.folders import RECORD
from orchestrator.ledger.storage import Storage
from orchestrator.training import worker
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import metadata_of
from tests.orchestrator.training.conftest import Bench
from tests.tables import make_table

pytestmark = pytest.mark.slow
KNN = {"detector": "knn"}
BANDS = {"embedding": {"pooling": {"name": "relative_deviation", "gamma": 4}}, "detector": "band_knn"}
BANDS_FILE = "embeddings.patches-poolingrelative_deviation-pooling_gamma4.0.npy"


def assert_as_made_anew(bench):
    anew = Bench(bench.data, bench.out.with_name("anew"))
    anew.branch, anew.configurations = bench.branch, bench.configurations
    anew.bring()
    for name, table in anew.tables.items():
        found, scores = bench.tables[name], ["score", "calibrated"]
        assert (found.drop_columns(scores), metadata_of(found)) == (table.drop_columns(scores), metadata_of(table))
        assert found["score"].to_numpy() == pytest.approx(table["score"].to_numpy(), rel=1e-3, abs=1e-4)
        metrics = ({k: v for k, v in b.record.metrics.items() if k.startswith(f"{name}.")} for b in (bench, anew))
        assert next(metrics) == pytest.approx(next(metrics))
    for path in anew.folder.glob("*.npy"):
        assert np.load(bench.folder / path.name) == pytest.approx(np.load(path), rel=1e-3, abs=1e-5)
    assert bench.omega == bench.record.metrics[f"{bench.plan.branches[0].scorings[0].name}.omega"]


def clips(bench, split="test"):
    return sorted((bench.data / "pump" / split).iterdir())


def add_a_test_clip(bench):
    shutil.copy(clips(bench)[0], clips(bench)[0].with_name("section_00_0000.wav"))


def relabel_a_clip(bench):
    normal = next(path for path in clips(bench) if "normal" in path.name)
    normal.rename(normal.with_name(normal.name.replace("normal_0000", "anomaly_0099")))


def lose(bench, *files):
    bench.configurations.append(KNN)  # since the table is whole, and nothing else would be missing
    for file in files:
        (bench.folder / file).write_bytes(b"")


def ask_for_one_embedding_meanwhile(bench):
    for change, configurations in ((add_a_test_clip, [{}, BANDS]), (lose, [{}]), (relabel_a_clip, [{}, BANDS])):
        bench.configurations = configurations
        change(bench)
        bench.bring()
    clips(bench)[0].unlink()


@pytest.mark.parametrize(
    ("change", "trains"),
    [
        (lambda bench: bench.configurations.extend([BANDS, {**BANDS, **KNN}]), False),
        (add_a_test_clip, False),
        (ask_for_one_embedding_meanwhile, False),
        (relabel_a_clip, False),
        (lambda bench: clips(bench)[0].unlink(), False),
        (lambda bench: clips(bench, "train")[0].unlink(), True),
        (lambda bench: lose(bench, "embeddings.npy"), False),
        (lambda bench: lose(bench, "embeddings.npy", "branch.pt"), True),
        (lose, False),
    ],
)
def test_only_what_changes_the_weights_trains(bench, change, trains):
    before = bench.record
    if not trains:  # of a worker that was lost when it had trained
        (bench.out / "checkpoints" / f"{bench.folder.name}.pt").touch()
    change(bench)
    assert bench.bring() == ({"branch"} if trains else set())
    if not trains:
        assert (bench.record.curve, bench.record.metrics["seconds"]) == (before.curve, before.metrics["seconds"])
    assert_as_made_anew(bench)


@pytest.mark.parametrize("version", ["SCORING_VERSION", "EMBEDDING_VERSION"])
def test_a_raised_version_of_what_comes_after_it_trains_nothing(bench, version, monkeypatch):
    before, written = bench.record, (bench.folder / "embeddings.npy").stat().st_mtime_ns
    monkeypatch.setattr(planning, version, getattr(planning, version) + 1)
    with pytest.raises(InputError, match="this node has another version of tutti than the driver"):
        bench.bring(versions=[*planning.versions()[:-1], -1])
    assert bench.bring() == set()
    assert bench.record.tables != before.tables
    embedded = (bench.folder / "embeddings.npy").stat().st_mtime_ns > written
    assert embedded == (bench.record.embeddings != before.embeddings) == (version == "EMBEDDING_VERSION")


def test_clips_that_come_and_go_leave_nothing_of_others_in_what_a_frozen_backbone_gives(bench):
    bench.branch["strategy"], bench.configurations = "frozen", [{}, BANDS]
    bench.bring()
    add_a_test_clip(bench)
    bench.bring()
    shutil.rmtree(bench.data / "rotor")
    bench.bring()
    assert (bench.folder / BANDS_FILE).stat().st_nlink == 2
    lose(bench, BANDS_FILE)  # and so the same file in the run's cache
    bench.bring()
    assert_as_made_anew(bench)


def test_what_fails_in_scoring_keeps_the_training_and_the_other_tables(bench, tmp_path):
    knn, bands = ({"name": name, "banks": "pooled"} for name in ("knn", "band_knn"))
    bench.configurations = [{"detector": knn}, {}, {**BANDS, "detector": bands}]
    bench.storage = (tmp_path / "storage").as_uri()
    first, second, *others = clips(bench, "train")
    for i, other in enumerate(others):  # each has a copy, so that neighbours cannot tell them apart
        shutil.copyfile([first, second][i % 2], other)
    records = []
    for _ in range(2):
        with pytest.raises(InputError, match="pump"):
            bench.bring()
        records.append(bench.record)
    assert records[0] == records[1]  # nothing is trained again
    assert (len(records[0].curve), records[0].tables.keys()) == (2, {"mahalanobis"})
    assert records[0].files.keys() == {"branch.pt", "embeddings.npy", BANDS_FILE, "tables/mahalanobis.parquet"}
    assert {path.name for path in (tmp_path / "storage").rglob("*")} >= {"branch.pt", RECORD}


@pytest.mark.parametrize("strategy", ["head", "frozen"])
def test_what_one_node_has_stored_another_does_not_make(trained, tmp_path, strategy):
    stored, training = tmp_path / "storage", {"branch"} if strategy == "head" else set()
    one, two = nodes = [Bench(trained.data, tmp_path / name, stored.as_uri()) for name in ("one", "two")]
    for node in nodes:
        node.branch["strategy"] = strategy
    assert (one.bring(), two.bring()) == (training, set())
    assert bool([*stored.rglob("derived*")]) == (strategy == "frozen")  # what a frozen backbone gives, is computed once
    assert (two.record, two.tables) == (one.record, one.tables)
    Storage(stored.as_uri(), one.out).push("cache")  # as the driver does
    shutil.rmtree(two.out)
    two.branch["channel"] = "far"
    assert two.bring(data=tmp_path / "nowhere") == training


def test_a_node_without_network_takes_a_checkpoint_from_the_run(trained, tmp_path, monkeypatch):
    published = replace(BACKBONES["BEATs_iter3"], sha256=SMALL_SHA256)
    monkeypatch.setitem(BACKBONES, "BEATs_iter3", published)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    stored = (tmp_path / "storage").as_uri()
    driver, node = (Bench(trained.data, tmp_path / name, stored) for name in ("driver", "node"))
    node.branch["backbone"] = "BEATs_iter3"
    monkeypatch.setenv("TUTTI_CACHE", str(tmp_path))
    shutil.copy(SMALL, tmp_path / "BEATs_iter3.pt")
    lay_out(node.plan.branches[0].spec.files, driver.job().backbones)
    Storage(stored, driver.out).push("cache")
    monkeypatch.setenv("TUTTI_CACHE", str(tmp_path / "none"))
    assert node.bring() == {"branch"}


@pytest.mark.parametrize("write", ["worker.write_table", "worker.write_record", "branches.model.embed"])
def test_a_process_that_ends_anywhere_leaves_no_half_branch(bench, monkeypatch, write):
    shutil.rmtree(bench.out)
    bench.configurations.append(KNN)
    calls, real = [], getattr(worker, write.rpartition(".")[2], None)

    def end(*arguments):
        calls.append(arguments)
        if len(calls) == 2 or real is None:  # at the second table, and the record after the weights'
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(write.replace("worker", worker.__name__), end)
    with pytest.raises(KeyboardInterrupt):
        bench.bring()
    monkeypatch.undo()
    assert ({*bench.record.files}, bench.record.tables) == ({"branch.pt"}, {})
    assert bench.bring() == set()
    assert {path.name for path in bench.folder.glob("*")} == {"branch.pt", "embeddings.npy", "tables", RECORD}


def test_a_record_names_a_file_by_its_digest_and_has_all_figures(trained):
    spec = BranchSpec(backbone={"path": "/here/beats.pt", "sha256": "0" * 64})
    params = worker.branch_record(replace(trained.plan.branches[0], spec=spec), "data").params
    assert (params["backbone.sha256"], params.get("backbone.path")) == ("0" * 64, None)
    assert (params["objective.name"], params["seed"], params["masked_prediction"]) == ("arcface", "0", "null")
    figures = worker.flat_metrics(official_metrics(make_table(["fan"], separation=-30.0)), "knn.")
    assert figures["knn.fan.auc_source"] == figures["knn.omega"] == 0.0
