"""Before a training: which branches a run has, what they are known by and cost, and what cannot work."""

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile

from branches.audio.cache import AudioCache
from branches.beats import load_beats, save_beats
from branches.checkpoint_files import SMALL, SMALL_SHA256
from branches.data.dataset import Dataset, noise_index, read_index
from branches.spec import BackboneSpec, BranchSpec
from orchestrator import plan as planning
from orchestrator.cost import core_gflops, duration, petaflop
from orchestrator.overview import overview
from orchestrator.plan import identity, make_plan, table_names, versions, without
from orchestrator.preflight import check_branches, check_lengths, notes_on, resolve_file, with_resolved_files
from orchestrator.system import SystemSpec, load_system
from scoring.errors import InputError

FROZEN = {"strategy": "frozen", "pooling": "mean"}


def system(name="mine", **configurations):
    return SystemSpec.model_validate({"name": name, "subsystems": {"one": configurations}})


def recorded(train=("t0", "t1"), test=("e0",), more=()):
    """A data set of clips of these digests, and maybe of other machines."""
    rows = [("train", "fan", digest) for digest in train] + [("test", "fan", digest) for digest in test] + [*more]
    clips = pa.Table.from_pylist([dict(zip(("split", "machine", "digest"), row, strict=True)) for row in rows])
    return Dataset(Path(), clips, pa.table({"digest": ["n0"]}))


def branch(data=None, **configuration):
    """The one branch of a system on a data set, beside the baseline."""
    found, _ = make_plan([system(x=configuration)], data or recorded()).branches
    return found


def raised(monkeypatch, value):
    """What a value is with one version after another one higher than it is."""
    for name in ("TRAINING_VERSION", "EMBEDDING_VERSION", "SCORING_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(planning, name, getattr(planning, name) + 1)
            yield value()


def test_a_branch_of_two_systems_is_planned_once_and_on_a_data_set_the_baseline_too():
    both = make_plan([system("a", x={"seeds": [0, 1]}), system("b", y={"seeds": [1, 2]})], None)
    planned = [("one/x/0", ("a",), 0), ("one/x/1", ("a", "b"), 1), ("one/y/2", ("b",), 2)]
    assert [(branch.name, branch.systems, branch.spec.seed) for branch in both.branches] == planned
    assert len({branch.config_id for branch in both.branches}) == 1
    assert both.trees["a"]["one"]["x"][1] == both.trees["b"]["one"]["y"][0]
    plan = make_plan([load_system("solo")], recorded())
    assert plan.baseline in plan.trees["solo"]["statistics"]["log_mel"]
    assert len(plan.branches) == 2
    left = without(plan, {plan.baseline})
    assert (left.baseline, list(left.trees["solo"])) == ("", ["frozen"])
    assert without(plan, {table for branch in plan.branches for table in table_names(branch)}).trees == {"solo": {}}
    assert [branch.systems for branch in make_plan([system(x={})], recorded()).branches] == [("mine",), ()]


def test_weights_embeddings_and_tables_are_known_by_all_that_determines_them_and_by_nothing_else(monkeypatch):
    def known(**other):
        found = branch(**other)
        return found.branch_id, found.embeddings_id, *found.tables.values()

    base = known()

    def same(**other):
        return [a == b for a, b in zip(known(**other), base, strict=True)]

    more = recorded(more=[("train", "pump", "p0"), ("test", "pump", "p1")])
    for other in ({"data": more}, {"data": recorded(train=("t0",))}, {"seeds": [1]}, {"branch": {"channel": "far"}}):
        assert same(**other) == [False, False, False]
    assert same(data=recorded(test=("e0", "e1"))) == [True, False, False]
    assert same(detector="knn") == [True, True, False]
    assert branch(more, branch=FROZEN).branch_id == branch(branch=FROZEN).branch_id  # which rests on no clips
    assert list(raised(monkeypatch, same)) == [[False, False, False], [True, False, False], [True, True, False]]
    assert versions() not in list(raised(monkeypatch, versions))  # so that nodes with another one are told


def test_ids_are_the_same_with_every_release_of_the_same_versions_and_count_what_is_not_the_default():
    lora = {"objective": {"name": "softmax"}, "strategy": {"name": "lora", "rank": 8}}
    assert [branch().branch_id, branch(branch=lora).branch_id] == ["2f767e85bd6ed34f", "93b72b055695814d"]
    mixed = {"augmentation": {"mixup": {}}}
    for settings in ({}, lora, mixed):
        assert identity(BranchSpec.model_validate(settings)) == settings
    assert identity(BackboneSpec(path="a.pt", sha256="0" * 64)) == {"sha256": "0" * 64}


def test_detectors_and_embeddings_share_a_branch_and_have_tables_named_by_what_is_not_the_default():
    bands = {"embedding": {"pooling": "band_mean"}, "detector": "band_knn"}
    sharp = {"embedding": {"layers": [-1, 3], "pooling": {"name": "relative_deviation", "gamma": 4}}}
    plan = make_plan([system(x={}, y=bands, z=sharp, w={**sharp, "detector": {"name": "knn", "k": 4}})], recorded())
    several, _ = plan.branches
    name = "patches-layers-1_3-poolingrelative_deviation-pooling_gamma4.0"
    assert list(several.tables) == ["mahalanobis", "patches.band_knn", f"{name}.mahalanobis", f"{name}.knn-k4"]
    trees = {key: [f"{several.branch_id}/{table}"] for key, table in zip("xyzw", several.tables, strict=True)}
    assert plan.trees == {"mine": {"one": trees}}
    assert (len(set(several.tables.values())), len(several.embeddings)) == (4, 3)
    assert several.branch_id == branch().branch_id
    assert several.tables.items() > branch().tables.items()

    layered = {"strategy": "frozen", "pooling": "band_mean", "backbone": {"layers": [1, 2]}}
    frozen = {"x": {"branch": FROZEN, "embedding": {"pooling": "relative_deviation"}}, "y": {"branch": layered}}
    (found,) = make_plan([system(**frozen)], None).branches
    assert found.spec.backbone.layers == (-1,)
    assert [embedding.layers for embedding in found.embeddings] == [(-1,), (1, 2)]


def test_a_checkpoint_counts_by_its_content_may_be_given_by_its_uri_and_is_named_if_it_cannot_be_used(tmp_path):
    save_beats(load_beats("tiny"), tmp_path / "tiny.pt")
    first = with_resolved_files(load_system("s1", backbone=str(tmp_path / "tiny.pt")))
    moved = (tmp_path / "tiny.pt").rename(tmp_path / "100 % mine.pt")
    second = with_resolved_files(load_system("s1", backbone=str(moved)))
    assert first != second
    assert len({make_plan([system], None).branches[0].branch_id for system in (first, second)}) == 1
    assert with_resolved_files(load_system("s1", backbone=moved.as_uri())) == second
    missing = tmp_path / "tiny.pt", None, "tiny.pt: no such file.*--backbone FILE"
    for path, sha256, message in (missing, (moved, "0" * 8, "has sha256")):
        with pytest.raises(InputError, match=message):
            resolve_file(BackboneSpec(path=str(path), sha256=sha256))


def test_a_plan_fetches_no_checkpoint_and_knows_one_by_its_whole_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTTI_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").pipe("/small.pt", SMALL.read_bytes())
    digests = (SMALL_SHA256, SMALL_SHA256[:8], None)
    told, short, unknown = (BackboneSpec(path="memory://small.pt", sha256=digest) for digest in digests)
    assert resolve_file(told, fetch=False) == told
    for spec in (short, unknown):
        with pytest.raises(InputError, match=r"memory://small.pt is not in the cache"):
            resolve_file(spec, fetch=False)
    assert not (tmp_path / "cache").exists()
    assert resolve_file(unknown) == resolve_file(short, fetch=False) == told


def test_what_is_not_there_for_a_branch_is_told_before_the_training(dataset, tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    text, noise = str(tmp_path / "text.pt"), noise_index(dataset)
    check_branches([branch(branch={"augmentation": {"noise": {}}})], noise)
    for configuration, message in (
        ({"branch": {"backbone": text}}, "text.pt is not a BEATs checkpoint"),
        ({"branch": {"masked_prediction": {"tokenizers": [text]}}}, "text.pt is not a BEATs checkpoint"),
        ({"branch": {"backbone": {"layers": [7]}}}, r"layers \[7\]: this BEATs has outputs 0 to"),
        ({"embedding": {"layers": [7]}}, r"layers \[7\]: this BEATs has outputs 0 to"),
        ({"branch": {"augmentation": {"noise": {"source": "supplemental"}}}}, r"no machine has supplemental/\*noise"),
    ):
        with pytest.raises(InputError, match=message):
            check_branches([branch(**configuration)], noise)


def audio(*seconds, channels=2):
    """Clips of these lengths, of which nothing is heard."""
    start = np.cumsum([0, *(int(16_000 * s) * channels for s in seconds)])
    return AudioCache(np.empty(0, np.int16), start, np.full(len(seconds), channels))


def test_a_clip_whose_attention_no_memory_holds_is_named():
    index = pa.table({"path": ["fan/train/short.wav", "fan/train/long.wav"]})
    check_lengths(index, audio(1, 59), [branch()])
    check_lengths(index, audio(1, 10**7), make_plan([], recorded()).branches)  # of log-mels
    with pytest.raises(InputError, match=r"fan/train/long.wav: 10000000 s are too long"):
        check_lengths(index, audio(1, 10**7), [branch()])


def test_what_the_data_cannot_give_is_noted(dataset):
    index = read_index(dataset)
    pump = index.filter(pc.equal(index["machine"], "pump"))  # which has no attributes

    def notes(settings, index=pump, channels=2):
        clips = audio(*[1] * len(index), channels=channels)
        return [note.split(":")[0] for note in notes_on(index, clips, [branch(branch=settings)])]

    assert notes({}, index) == notes({"channel": "far"}, index) == notes({}, index, channels=1) == []
    assert notes({}) == ["all training clips are of one class"]
    assert notes({"classes": {"pseudo_labels": {}}}) == notes(FROZEN) == []
    generated, source = {"augmentation": {"generated": {}}}, index.filter(pc.equal(index["domain"], "source"))
    assert [notes(generated, clips) for clips in (index, source)] == [[], ["no operating state is rare"]]
    for settings in ({"channel": "cancel"}, {"augmentation": {"noise": {}}}):
        assert notes(settings, index, channels=1) == [f"{len(index)} of {len(index)} clips have one channel"]


def test_a_plan_counts_a_generator_once_and_tells_which_configurations_hear_the_same_on_one_channel(dataset, tmp_path):
    generated = {"augmentation": {"generated": {}}}
    wanted = system(x={"branch": generated}, y={"branch": {**generated, "objective": "softmax"}, "seeds": [1, 2]})
    found, without = (overview([s], dataset, None) for s in (wanted, system(x={}, y={"seeds": [1, 2]})))
    assert [row["steps"] for row in found["generated"]] == [20_000]
    assert found["cpu_hours"] - without["cpu_hours"] > 100  # what is for a GPU
    assert ["settings are for a GPU" in note for note in found["notes"]] == [True]
    heard = system(
        a={},
        b={"detector": "knn"},
        c={"branch": {"channel": "cancel"}},
        d={"branch": {"channel": "cancel"}, "detector": "knn"},
    )
    for path in dataset.rglob("*.wav"):
        (tmp_path / path.relative_to(dataset)).parent.mkdir(parents=True, exist_ok=True)
        samples, rate = soundfile.read(path)
        soundfile.write(tmp_path / path.relative_to(dataset), samples[:, 0], rate)
    said = "clips have one channel, where cancel is the same as near: one/c repeats one/a, one/d repeats one/b"
    assert [overview([heard], data, None)["notes"] for data in (dataset, tmp_path)] == [[], [said]]
    names = [table["name"] for table in overview([heard], dataset, None)["tables"]]
    assert names == ["one/a/0", "one/b/0", "one/c/0", "one/d/0", "baseline/log_mel/0"]


def test_the_size_of_a_file_what_is_trained_and_every_clip_that_is_seen_count(tmp_path):
    def spec(path="tiny", **settings):
        return BranchSpec.model_validate({"backbone": {"path": str(path)}, **settings})

    copy = shutil.copy(SMALL, tmp_path / "mine.pt")
    small, copied, absent = (petaflop(spec(path), 1000) for path in ("small", copy, tmp_path / "not_yet_there.pt"))
    assert copied == pytest.approx(small, rel=0.6)  # the file is in half precision
    assert absent > 50 * copied
    speeds = [core_gflops(spec(path)) for path in ("tiny", "small", "not_yet_there.pt")]
    assert speeds == sorted(set(speeds))
    costs = [petaflop(spec(strategy=name), 1000) for name in ("frozen", "head", "lora", "full")]
    assert costs == sorted(set(costs))
    assert petaflop(spec(strategy="frozen"), 2000) == 2 * costs[0]
    for setting, usual in (("steps", 10_000), ("batch_size", 32), ("accumulation", 1), ("crop_seconds", 10)):
        twice = petaflop(spec(strategy="full", training={setting: 2 * usual}), 1000)
        assert twice - costs[0] == pytest.approx(2 * (costs[-1] - costs[0]))
    assert [duration(s) for s in (8.2, 89, 91, 5300, 11100)] == ["8 s", "89 s", "2 min", "88 min", "3 h 05 min"]
