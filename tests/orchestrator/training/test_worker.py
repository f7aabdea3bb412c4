"""What one branch's process does: what is there already costs nothing again; what is given up, and what is not."""

import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from branches.data.dataset import Dataset
from branches.data.synthetic import SyntheticSize, write_dataset
from orchestrator import plan as planning
from orchestrator.ledger.folders import BRANCHES, is_finished, new_folder, read_record, refuse_older
from orchestrator.plan import make_plan, versions
from orchestrator.system import SystemSpec
from orchestrator.training.job import Job
from orchestrator.training.worker import hopeless, is_embedded, train_and_score
from scoring.errors import InputError
from scoring.table import read_table

LOSSES = st.lists(st.floats(0.01, 10), min_size=1, max_size=50)


def curve(losses, every=2):
    return [(every * (i + 1), loss) for i, loss in enumerate(losses)]


def test_a_loss_that_stays_where_it_began():
    reason = hopeless(curve([3.0] * 13), 100)
    assert reason == "given up at step 26 of 100: its loss is 3.000, and was 3.000 at the start"
    assert not hopeless(curve([3.0] * 12), 100)  # too early to say
    assert not hopeless(curve([3.0] * 5, every=10), 100)  # too few to say
    assert not hopeless(curve([3.0, *[2.9] * 12]), 100)


@given(LOSSES, st.floats(0.5, 2))
def test_the_scale_of_a_loss_does_not_matter(losses, scale):
    found = hopeless(curve(losses), 100)
    scaled = hopeless(curve([scale * loss for loss in losses]), 100)
    close = abs(sum(losses[-5:]) / 5 - losses[0]) < 1e-9
    assert close or bool(found) == bool(scaled)


@given(LOSSES)
def test_a_loss_that_has_fallen_throughout_is_never_given_up(losses):
    falling = sorted(set(losses), reverse=True)
    assert not hopeless(curve(falling), 100)


class Bench:
    """A data set, and one branch that is brought to its tables in this process."""

    def __init__(self, folder):
        self.data, self.out = folder / "data", folder / "out"
        write_dataset(self.data, SyntheticSize(4, 2, 2, 1.0), machines=["rotor", "pump"])
        training = {"steps": 2, "crop_seconds": 0.5}
        self.branch = {"embedding_dim": 8, "strategy": "head", "pooling": "mean", "training": training}
        self.detector = "mahalanobis"
        self.embeddings = [{}]

    def bring(self, *parts):
        """Make the tables, at once or in parts; whether that took a training."""
        configurations = {
            f"b{i}": {"branch": self.branch, "detector": self.detector, **embedding}
            for i, embedding in enumerate(self.embeddings)
        }
        system = SystemSpec.model_validate({"name": "s", "subsystems": {"a": configurations}})
        dataset = Dataset.read(self.data)
        (branch,) = make_plan([system], dataset).branches
        assert not is_finished(self.out, branch.branch_id, branch.tables)
        job = Job(
            data=self.data,
            out=self.out,
            cache=self.out / "cache" / dataset.fingerprint,
            checkpoints=self.out / "checkpoints",
            fingerprint=dataset.fingerprint,
            noise=dataset.noise,
            threads=1,
            gpus=0.0,
            memory=None,
            checkpoint_seconds=600.0,
            versions=versions(),
            frozen=tuple(branch.spec.frozen_inputs(branch.embeddings)),
        )
        job.checkpoints.mkdir(parents=True, exist_ok=True)
        losses = []
        for part in parts or ["all"]:
            assert is_embedded(branch, job, dataset.index) or part != "scores"
            before = len(losses)
            omega = train_and_score(branch, job.limited_to(part), dataset.index, lambda *report: losses.append(report))
            assert (omega is None) == (part == "embeddings")
            assert part != "scores" or len(losses) == before
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


def test_in_parts_as_at_once(bench, tmp_path):
    (tmp_path / "parts").mkdir()
    other = Bench(tmp_path / "parts")
    assert other.bring("embeddings", "scores")
    assert other.table().equals(bench.table())
    assert read_record(other.folder).files.keys() == read_record(bench.folder).files.keys()
    assert read_record(other.folder).metrics.keys() == read_record(bench.folder).metrics.keys()


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


def test_machines_that_come_later_train_nothing_where_they_take_no_part(tmp_path):
    bench = Bench(tmp_path)
    aside = bench.data.rename(tmp_path / "aside")
    bench.data.mkdir()
    shutil.copytree(aside / "rotor", bench.data / "rotor")
    bench.branch |= {"machines": ["rotor"]}
    assert bench.bring()
    shutil.copytree(aside / "pump", bench.data / "pump")
    assert not bench.bring()
    assert set(bench.table()["machine"].to_pylist()) == {"rotor", "pump"}


def test_a_clip_that_is_relabelled_trains_nothing(bench):
    (clip, *_) = sorted((bench.data / "pump" / "test").glob("*normal*"))
    clip.rename(clip.with_name(clip.name.replace("normal", "anomaly").replace("_0000", "_0099")))
    assert not bench.bring()


def test_clips_that_are_gone_leave_the_embeddings_too(bench):
    before = bench.table()
    next((bench.data / "pump" / "test").iterdir()).unlink()
    assert not bench.bring()
    assert bench.table().num_rows == before.num_rows - 1
    assert (
        len(np.load(bench.folder / "embeddings.npy")) == len(np.load(bench.folder / "clips.npy")) == before.num_rows - 1
    )


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
        "clips.npy",
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
    assert {len(embeddings) for embeddings in loaded} == {len(np.load(bench.folder / "clips.npy"))}


def test_what_fails_in_scoring_keeps_the_training_and_the_other_tables(tmp_path):
    bench = Bench(tmp_path)
    bench.embeddings = [{"detector": "knn"}, {"detector": "gmm"}, BANDS]
    clip, *others = (bench.data / "pump" / "train").iterdir()
    for other in others:  # copies of each other, which neighbours cannot tell apart
        shutil.copyfile(clip, other)
    with pytest.raises(InputError, match="pump"):
        bench.bring()
    weights = (bench.folder / "branch.pt").read_bytes()
    record = read_record(bench.folder)
    assert len(record.curve) == 2
    assert record.tables.keys() == {"gmm"}
    assert {"embeddings.npy", f"embeddings.{BANDS_NAME}.npy", "tables/gmm.parquet"} < record.files.keys()
    with pytest.raises(InputError, match="pump"):
        bench.bring()
    assert (bench.folder / "branch.pt").read_bytes() == weights
    assert read_record(bench.folder).curve == record.curve


def test_branches_of_an_older_version_are_told_and_kept(bench, tmp_path):
    refuse_older(bench.out)
    with new_folder(tmp_path / "old", BRANCHES, "b") as folder:
        (folder / "record.json").write_text('{"name": "a/b/0", "identity": {}, "files": {}}')
    with pytest.raises(InputError, match=r"made by tutti 0\.1.*give another --out"):
        refuse_older(tmp_path / "old")
