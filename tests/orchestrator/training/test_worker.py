"""What one branch's process does: what is there already costs nothing again, and a record commits what was made."""

import shutil

import numpy as np
import pytest

from branches.data.dataset import Dataset
from branches.data.synthetic import SyntheticSize, write_dataset
from orchestrator import plan as planning
from orchestrator.ledger.folders import BRANCHES, RECORD, is_finished, read_record
from orchestrator.plan import make_plan, versions
from orchestrator.system import SystemSpec
from orchestrator.training import worker
from orchestrator.training.job import Job
from orchestrator.training.worker import train_and_score
from scoring.errors import InputError
from scoring.table import read_table


class Bench:
    """A data set, and one branch that is brought to its tables in this process."""

    def __init__(self, folder):
        self.data, self.out = folder / "data", folder / "out"
        write_dataset(self.data, SyntheticSize(4, 2, 2, 1.0), machines=["rotor", "pump"])
        training = {"steps": 2, "crop_seconds": 0.5}
        self.branch = {"embedding_dim": 8, "strategy": "head", "pooling": "mean", "training": training}
        self.detector = "mahalanobis"
        self.embeddings = [{}]

    def bring(self):
        """Make the tables; whether that took a training."""
        configurations = {
            f"b{i}": {"branch": self.branch, "detector": self.detector, **embedding}
            for i, embedding in enumerate(self.embeddings)
        }
        system = SystemSpec.model_validate({"name": "s", "subsystems": {"a": configurations}})
        dataset = Dataset.read(self.data)
        branch, _ = make_plan([system], dataset).branches  # and the baseline
        assert not is_finished(self.out, branch.branch_id, branch.tables)
        job = Job(
            data=self.data,
            out=self.out,
            fingerprint=dataset.fingerprint,
            training=dataset.training_fingerprint(),
            noise=dataset.noise,
            gpus_per_branch=0.0,
            versions=versions(),
            frozen=tuple(branch.spec.frozen_inputs(branch.embeddings)),
        )
        losses = []
        train_and_score(branch, job, dataset.index, lambda *report: losses.append(report))
        assert is_finished(self.out, branch.branch_id, branch.tables)
        return bool(losses)

    @property
    def folder(self):
        (folder,) = (self.out / BRANCHES).iterdir()
        return folder

    def table(self, detector="mahalanobis"):
        return read_table(self.folder / "tables" / f"{detector}.parquet")


@pytest.fixture
def bench(tmp_path):
    made = Bench(tmp_path)
    assert made.bring()
    return made


def test_another_detector_trains_and_embeds_nothing(bench):
    before = (bench.folder / "embeddings.npy").read_bytes()
    first = bench.table()
    bench.detector = "knn"
    assert not bench.bring()
    assert (bench.folder / "embeddings.npy").read_bytes() == before
    assert bench.table().equals(first)
    assert read_record(bench.folder).tables.keys() == {"mahalanobis", "knn"}


@pytest.mark.parametrize("version", ["SCORING_VERSION", "EMBEDDING_VERSION"])
def test_a_raised_version_of_what_comes_after_it_trains_nothing(bench, version, monkeypatch):
    before = read_record(bench.folder)
    monkeypatch.setattr(planning, version, getattr(planning, version) + 1)
    assert not bench.bring()
    after = read_record(bench.folder)
    assert after.tables != before.tables
    assert (after.embeddings != before.embeddings) == (version == "EMBEDDING_VERSION")
    assert after.curve == before.curve
    assert after.metrics["seconds"] == before.metrics["seconds"]  # of the training


def test_test_clips_that_come_later_train_nothing(bench):
    before = bench.table()
    (clip, *_) = sorted((bench.data / "pump" / "test").iterdir())
    shutil.copyfile(clip, clip.with_name("section_00_0000.wav"))
    assert not bench.bring()
    after = bench.table()
    assert after.num_rows == before.num_rows + 1
    scores = dict(zip(after["clip"].to_pylist(), after["score"].to_pylist(), strict=True))
    assert scores["section_00_0000.wav"] == pytest.approx(scores[clip.name], rel=1e-4)


def test_a_clip_that_is_relabelled_trains_nothing(bench):
    (clip, *_) = sorted((bench.data / "pump" / "test").glob("*normal*"))
    clip.rename(clip.with_name(clip.name.replace("normal", "anomaly").replace("_0000", "_0099")))
    assert not bench.bring()


def test_clips_that_are_gone_leave_the_embeddings_too(bench):
    before = bench.table()
    next((bench.data / "pump" / "test").iterdir()).unlink()
    assert not bench.bring()
    assert bench.table().num_rows == before.num_rows - 1
    assert len(np.load(bench.folder / "embeddings.npy")) == before.num_rows - 1


def test_another_training_clip_trains_another_branch(bench):
    next((bench.data / "pump" / "train").iterdir()).unlink()
    assert bench.bring()
    assert len(list((bench.out / BRANCHES).iterdir())) == 2


def test_embeddings_that_are_lost_are_made_again_with_the_weights(bench):
    before = np.load(bench.folder / "embeddings.npy")
    (bench.folder / "embeddings.npy").write_bytes(b"")
    bench.detector = "knn"
    assert not bench.bring()
    assert np.load(bench.folder / "embeddings.npy") == pytest.approx(before, rel=1e-5, abs=1e-6)


BANDS = {"embedding": {"pooling": {"name": "relative_deviation", "gamma": 4}}, "detector": "band_knn"}
BANDS_NAME = "patches-poolingrelative_deviation-pooling_gamma4.0"


def test_another_embedding_trains_nothing(bench):
    first, record = bench.table(), read_record(bench.folder)
    bench.embeddings = [{}, BANDS, {**BANDS, "detector": "knn"}]
    assert not bench.bring()
    assert {path.name for path in bench.folder.glob("*.npy")} == {
        "embeddings.npy",
        f"embeddings.{BANDS_NAME}.npy",
    }
    assert bench.table().equals(first)
    after = read_record(bench.folder)
    assert after.tables.keys() == {"mahalanobis", f"{BANDS_NAME}.band_knn", f"{BANDS_NAME}.knn"}
    assert after.tables["mahalanobis"] == record.tables["mahalanobis"]
    assert np.load(bench.folder / f"embeddings.{BANDS_NAME}.npy").shape == (bench.table().num_rows, 8, 64)


@pytest.mark.parametrize("strategy", ["frozen", "head"])
def test_clips_that_come_and_go_leave_no_embedding_of_others(tmp_path, strategy):
    bench = Bench(tmp_path)
    bench.branch["strategy"] = strategy
    bench.embeddings = [{}, BANDS]
    bench.bring()
    files = sorted((bench.data / "pump" / "test").iterdir())
    shutil.copyfile(files[0], files[0].with_name("section_00_0000.wav"))
    bench.bring()
    files[0].unlink()
    assert not bench.bring()
    loaded = [np.load(path) for path in bench.folder.glob("embeddings*.npy") if path.parent == bench.folder]
    assert {len(embeddings) for embeddings in loaded} == {bench.table(f"{BANDS_NAME}.band_knn").num_rows}


def test_what_fails_in_scoring_keeps_the_training_and_the_other_tables(tmp_path):
    bench = Bench(tmp_path)
    pooled = {"banks": "pooled"}
    bench.embeddings = [
        {"detector": {"name": "knn", **pooled}},
        {},
        {**BANDS, "detector": {"name": "band_knn", **pooled}},
    ]
    first, second, *others = (bench.data / "pump" / "train").iterdir()
    for i, other in enumerate(others):  # each has a copy, so that neighbours cannot tell them apart
        shutil.copyfile([first, second][i % 2], other)
    with pytest.raises(InputError, match="pump"):
        bench.bring()
    weights = (bench.folder / "branch.pt").read_bytes()
    record = read_record(bench.folder)
    assert len(record.curve) == 2
    assert record.tables.keys() == {"mahalanobis"}
    assert {"embeddings.npy", f"embeddings.{BANDS_NAME}.npy", "tables/mahalanobis.parquet"} < record.files.keys()
    with pytest.raises(InputError, match="pump"):
        bench.bring()
    assert (bench.folder / "branch.pt").read_bytes() == weights
    assert read_record(bench.folder).curve == record.curve


def test_a_machine_that_is_gone_is_gone_from_a_frozen_branch(tmp_path):
    bench = Bench(tmp_path)
    bench.branch["strategy"] = "frozen"
    bench.bring()
    shutil.rmtree(bench.data / "rotor")  # the last one by name
    bench.bring()
    assert set(bench.table("patches-poolingmean.mahalanobis")["machine"].to_pylist()) == {"pump"}


def test_an_embedding_of_other_clips_is_not_taken_for_one_of_these(bench):
    """Of two embeddings one is not asked for while a clip is added; it is then made again."""
    bench.embeddings = [{}, BANDS]
    bench.bring()
    clip, *_ = sorted((bench.data / "pump" / "test").iterdir())
    shutil.copyfile(clip, clip.with_name("section_00_0000.wav"))
    bench.embeddings = [{}]
    bench.bring()
    bench.embeddings = [{}, BANDS]
    bench.bring()
    assert len(np.load(bench.folder / f"embeddings.{BANDS_NAME}.npy")) == bench.table().num_rows


@pytest.mark.parametrize("write", ["write_table", "np.save", "write_record"])
def test_a_process_that_ends_anywhere_leaves_no_half_branch(tmp_path, monkeypatch, write):
    """Nothing counts that no record has committed; weights that one has are kept."""
    bench = Bench(tmp_path)
    bench.embeddings = [{}, {"detector": "knn"}]

    def end(*arguments):
        raise KeyboardInterrupt

    calls = []
    real = {"write_table": worker.write_table, "write_record": worker.write_record}.get(write)
    if write == "np.save":
        monkeypatch.setattr("branches.model.embed", end)
    else:  # the second table, and the record after the weights'
        monkeypatch.setattr(worker, write, lambda *a: calls.append(a) or (end() if len(calls) == 2 else real(*a)))
    with pytest.raises(KeyboardInterrupt):
        bench.bring()
    monkeypatch.undo()
    record = read_record(bench.folder)
    assert set(record.files) == {"branch.pt"}
    assert not record.tables
    assert not bench.bring()
    assert {path.name for path in bench.folder.glob("*")} == {*("branch.pt", "embeddings.npy", "tables", RECORD)}
