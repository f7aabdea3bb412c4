"""System files and what they may say; and before a training: branches of a run, their ids and costs, what cannot be."""

import re
import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from branches.audio.cache import AudioCache
from branches.beats import load_beats, save_beats
from branches.checkpoint_files import SMALL, SMALL_SHA256
from branches.data.dataset import Dataset, noise_index, read_index
from branches.spec import PROJECTION, BackboneSpec, BranchSpec
from orchestrator import plan as planning
from orchestrator.cost import core_gflops, duration, petaflop
from orchestrator.overview import overview
from orchestrator.plan import identity, make_plan, table_names, versions, without
from orchestrator.preflight import check_branches, check_lengths, notes_on, resolve_file, with_resolved_files
from orchestrator.system import SYSTEMS, SystemSpec, built_in_systems, load_system, load_systems
from scoring.detectors import BandKnnSpec, KnnSpec
from scoring.errors import InputError

PAGE = (Path(__file__).parents[2] / "docs" / "systems.md").read_text()


def configurations(name, backbone=None):
    return [c for configurations in load_system(name, backbone).subsystems.values() for c in configurations.values()]


def branches(*names):
    return make_plan(load_systems(names, backbone="tiny"), None).branches


@pytest.fixture
def system_file(tmp_path):
    def path(text):
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return path


@pytest.mark.parametrize("name", built_in_systems())
def test_a_system_as_it_is_shown_is_a_system_file(system_file, name):
    system = load_system(name)
    assert (system.name, bool(system.description)) == (name, True)
    file = system_file(yaml.safe_dump(system.model_dump(mode="json")))
    assert load_system(file) == system
    assert load_systems([name, name]) == [system]
    with pytest.raises(InputError, match="the same name"):
        load_systems([name, file])


def test_shared_settings_those_for_a_built_in_backbone_and_own_ones_replace_each_other(system_file):
    text = """
name: mine
branch: {backbone: {path: mine.pt, sha256: 12345678}, augmentation: {time_mask: 80}}
tiny: {backbone: {layers: [1]}, augmentation: {time_mask: 20}, embedding_dim: 8}
subsystems:
  one:
    masked: {branch: {augmentation: {frequency_mask: 1}}, tiny: {augmentation: {frequency_mask: 2}}}
    own: {branch: {backbone: {path: other.pt, layers: [6]}, embedding_dim: 4}}
"""
    path = system_file(text)

    def values(backbone):
        for c in configurations(path, backbone):
            masks, file = c.branch.augmentation, c.branch.backbone
            yield masks.time_mask, masks.frequency_mask, c.branch.embedding_dim, file.layers[0], file.path, file.sha256

    for name in ("tiny", "small"):
        assert list(values(name)) == [(0, 2, 8, 1, name, None), (20, 0, 4, 6, name, None)]
    assert list(values("given.pt")) == [(0, 1, 256, -1, "given.pt", None), (80, 0, 4, 6, "given.pt", None)]
    assert list(values(None)) == [(0, 1, 256, -1, "mine.pt", "12345678"), (80, 0, 4, 6, "other.pt", None)]
    assert {c.branch.backbone.path for c in configurations("solo", "tiny")} == {"log_mel", "tiny"}


def test_patches_are_of_the_branch_s_layers_and_of_a_frozen_branch_there_is_nothing_else(system_file):
    text = """
name: x
branch: {backbone: {path: small, layers: [0, 1], precision: bfloat16}, channel: far, pooling: band_mean}
subsystems:
  a:
    head:
    patches: {embedding: {pooling: mean}}
    last: {embedding: {layers: [-1]}}
    short: {branch: {strategy: frozen, objective: softmax, training: {steps: 3}}}
    long: {branch: {strategy: frozen, pooling: attentive_statistics}, embedding: {pooling: band_mean}}
"""
    head, patches, last, short, long = configurations(system_file(text))
    assert head.embedding == PROJECTION
    assert [c.embedding.layers for c in (patches, last, short)] == [(0, 1), (-1,), (0, 1)]
    assert short == long
    backbone = {"path": "small", "precision": "bfloat16", "sha256": None}
    frozen = {"backbone": backbone, "channel": "far", "strategy": {"name": "frozen"}, "seed": 0}
    assert short.branch == BranchSpec.model_validate(frozen)
    assert short.branch.model_dump(mode="json") == frozen


MISTAKES_OF_A_CONFIGURATION = [
    ("3", "a.b: Input should be a mapping with keys among branch, detector, embedding, expected, seeds"),
    ("{tiny: {training: {stps: 1}}}", "b.tiny.training.stps: unknown key; did you mean steps.; allowed: accum"),
    ("{branch: {training: {steps: 1:30}}}", "steps: .*integer.* '1:30'"),
    ("{branch: {seed: 1}}", "b.branch: seed is not given here; .* lists its `seeds`"),
    ("{seeds: 3}", r"a.b.seeds: Input should be a list, such as \[0, 1, 2\]"),
    ("{seeds: [1, 1]}", "seeds must be distinct"),
    ("{detector: {k: 3}}", "detector: Input should have a `name`"),
    ("{detector: [knn, knn]}", "detector: Input should be one choice, .* a further one is a further configuration"),
    ("{embedding: {pooling: attentive_statistics}}", "embedding.pooling: .*'mean', 'band_mean', 'band_statistics'"),
    ("{branch: {strategy: frozen}}", "the pooling attentive_statistics must be"),
    ("{branch: {strategy: frozen, pooling: mean}, seeds: [0, 1]}", "all seeds would be the same branch; give one"),
    ("{branch: {strategy: head, backbone: log_mel}}", "log_mel has no weights to train"),
    ("{branch: {channel: cancel, augmentation: {noise: {}}}}", "a.b: far noise is what the channel cancel removes"),
    ("{detector: band_knn}", "band_knn compares frequency bands, and the pooling attentive_statistics keeps none"),
    ("{detector: band_knn, embedding: {pooling: mean}}", "pooling mean keeps none; .* such as band_mean"),
    ("{}, b: {}", "b appears twice"),
    ("}, a b: {c: ", "subsystems.a b.*should match pattern"),
]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name: Field required"),
        ("- a list", "Input should be a mapping with keys among branch, description, name, subsystems, tiny"),
        ("name: x\nsubsystems: {a: {}}", "subsystems.a: .* at least 1"),
        ("name: x\nbranch: {seed: 1}\nsubsystems: {a: {b: }}", "branch: seed is not given here"),
        ("[" * 500, "not YAML"),
        ("name: !own x", "not YAML: unknown tag"),
        *((f"name: x\nsubsystems: {{a: {{b: {c}}}}}", f".*{message}") for c, message in MISTAKES_OF_A_CONFIGURATION),
    ],
)
def test_what_is_wrong_is_named_with_the_file(system_file, text, message):
    with pytest.raises(InputError, match=f"mine.yaml: {message}"):
        load_system(system_file(text))


def test_all_mistakes_of_a_file_are_told_at_once_and_those_of_a_name_or_an_override_once_for_all(system_file):
    text = """
name: x
branch: {traning: {steps: 3}, channel: up}
subsystems: {a: {b: {seeds: 3}, c: {branch: {objective: arcfce}, seeds: ["1", b]}}, d e: {f: 3}}
"""
    with pytest.raises(InputError) as raised:
        load_system(system_file(text))
    keys = ["branch.channel", "branch.traning", "subsystems.a.b.seeds", "subsystems.a.c.branch.objective"]
    keys += ["subsystems.a.c.seeds.1", "subsystems.d e.[key]", "subsystems.d e.f"]
    assert [line.split(": ")[1] for line in str(raised.value).splitlines()] == keys
    for arguments, message in (
        (("s99",), "unknown system 's99'; give a YAML file or one of demo, ladder, s1, s2"),
        (("../systems/s1",), "unknown system"),
        (("none.yaml",), r"none.yaml: cannot be read \(No such file"),
        (("s1", "log_mel"), "log_mel is no network"),
        (("s2", None, ["steps"]), "^--set 'steps': give KEY=VALUE"),
        (("s2", None, ["detector.k={"]), "^--set 'detector.k={': not YAML"),
        (("s2", None, ["steps=3"]), "yaml with --set: steps: unknown key; did you mean seeds.; allowed: .*, seeds$"),
        (("s2", None, ["branch.trainin.steps=3"]), "yaml with --set: branch.trainin: unknown key; .* training.*$"),
        (("s2", None, ["detector=band_knn"]), "with --set: band_knn compares frequency bands"),
    ):
        with pytest.raises(InputError, match=message) as raised:
            load_system(*arguments)
        assert "\n" not in str(raised.value)


def test_scalars_are_what_they_look_like_and_overrides_hold_in_every_configuration_also_beside_a_name(system_file):
    text = """
name: no
branch: {backbone: {path: 2026-02-30, sha256: 12345678}, training: {steps: 010, learning_rate: 1e-4}}
subsystems: {on: {off: {seeds: [00, 1_000], detector: {name: mahalanobis, standardised: yes}}}}
"""
    system = load_system(system_file(text), overrides=["branch.training.batch_size=04"])
    c = system.subsystems["on"]["off"]
    training = c.branch.training
    assert (training.steps, training.learning_rate, training.batch_size) == (10, 1e-4, 4)
    assert (system.name, c.seeds, c.detector.standardised) == ("no", (0, 1000), True)
    assert (c.branch.backbone.path, c.branch.backbone.sha256) == ("2026-02-30", "12345678")
    text = "name: x\nsubsystems: {a: {b: , c: {branch: {backbone: small, objective: arcface, training: {steps: 4}}}}}"
    overrides = ["branch.training.batch_size=30", "seeds=[1, 2]", "detector.name=knn", "detector.k=3"]
    overrides += ["branch.backbone.precision=bfloat16", "branch.objective.name=arcface", "branch.objective.scale=3"]
    for c in load_system(system_file(text), overrides=overrides).subsystems["a"].values():
        assert (c.branch.training.batch_size, c.seeds, c.detector) == (30, (1, 2), KnnSpec(k=3))
        assert (c.branch.backbone.precision, c.branch.objective.scale) == ("bfloat16", 3)
    assert (c.branch.training.steps, c.branch.backbone.path) == (4, "small")


S5 = SYSTEMS / "s5.yaml"
WHOLE = yaml.safe_load(S5.read_text())
WORDS = st.sampled_from(["branch", "tiny", "seeds", "name", "source", "detector", "k", *BranchSpec.model_fields])
SCALARS = st.integers() | st.floats() | st.booleans() | st.none() | st.text(max_size=5) | st.dates()
KEYS = WORDS | SCALARS
VALUES = st.recursive(SCALARS, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=3), max_leaves=8)
SYSTEMS_WITH_ANY_VALUE = st.builds(lambda key, value: {**WHOLE, key: value}, KEYS, VALUES)
FILES = st.text(alphabet="{}[]:,-&*!<|>?%@`'\"#~ \nan0") | (SYSTEMS_WITH_ANY_VALUE | VALUES).map(yaml.safe_dump)
PLACES = st.lists(WORDS | st.text(max_size=3), max_size=4).map(".".join)
OVERRIDES = st.builds("{}={}".format, PLACES, st.text(max_size=8) | VALUES.map(yaml.safe_dump)) | st.text()


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary() | FILES.map(str.encode), st.sampled_from([None, "tiny"]), st.lists(OVERRIDES, max_size=3))
@example(b"name: &a {<<: *a}", None, [])
@example(b"name: &a [*a]", None, [])
def test_any_text_any_value_anywhere_and_any_override_is_accepted_or_told(tmp_path, content, backbone, overrides):
    (tmp_path / "any.yaml").write_bytes(content)
    for path, more in ((tmp_path / "any.yaml", []), (S5, overrides)):
        try:
            load_system(str(path), backbone, more)
        except InputError as error:
            lines = str(error).splitlines()
            assert all(line.startswith((str(path), "--set")) and ": " in line for line in lines)
            assert len(set(lines)) == len(lines)


def test_the_systems_are_as_large_as_their_page_says_and_share_branches_and_the_ladder_is_the_published_recipe():
    told = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", PAGE, re.MULTILINE)
    tables = {name: sum(len(c.seeds) for c in configurations(name)) for name in built_in_systems()}
    assert {name: (int(b), int(t)) for name, b, t in told} == {n: (len(branches(n)), tables[n]) for n in tables}
    assert len(branches("s1", "s2")) == len(branches("s2")) == 10
    specs = [branch.spec for branch in branches("s2")]
    assert {spec.objective.name for spec in specs} == {"arcface", "softmax", "subcenter_arcface"}
    assert {spec.strategy.name for spec in specs} == {"full", "partial", "lora"}
    fourth, fifth = ([c.branch for c in configurations(name) if not c.branch.is_frozen] for name in ("s4", "s5"))
    (generated,) = {(b.augmentation.generated, b.channel) for b in fourth}
    assert {(b.augmentation.generated, b.channel) for b in fifth if b.augmentation.generated} == {generated}
    detector = BandKnnSpec(banks="pooled", density={"name": "difference", "weight": "fitted"})
    assert {c.detector for c in configurations("ladder")} == {detector}
    assert all(f"{c.expected:.2f}" in PAGE for c in configurations("ladder"))


FROZEN = {"strategy": "frozen", "pooling": "mean"}


def system(name="mine", **configurations):
    return SystemSpec.model_validate({"name": name, "subsystems": {"one": configurations}})


def recorded(train=("t0", "t1"), test=("e0",), more=()):
    rows = [("train", "fan", digest) for digest in train] + [("test", "fan", digest) for digest in test] + [*more]
    clips = pa.Table.from_pylist([dict(zip(("split", "machine", "digest"), row, strict=True)) for row in rows])
    return Dataset(Path(), clips, pa.table({"digest": ["n0"]}))


def branch(data=None, **configuration):
    found, _ = make_plan([system(x=configuration)], data or recorded()).branches
    return found


def raised(monkeypatch, value):
    for name in ("TRAINING_VERSION", "EMBEDDING_VERSION", "SCORING_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(planning, name, getattr(planning, name) + 1)
            yield value()


def test_a_branch_of_two_systems_detectors_or_embeddings_is_planned_once_and_the_baseline_too():
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


def test_weights_embeddings_and_tables_are_known_by_all_that_determines_them_and_the_same_in_every_release(monkeypatch):
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
    lora = {"objective": {"name": "softmax"}, "strategy": {"name": "lora", "rank": 8}}
    assert [branch().branch_id, branch(branch=lora).branch_id] == ["2f767e85bd6ed34f", "93b72b055695814d"]
    mixed = {"augmentation": {"mixup": {}}}
    for chosen in ({}, lora, mixed):
        assert identity(BranchSpec.model_validate(chosen)) == chosen
    assert identity(BackboneSpec(path="a.pt", sha256="0" * 64)) == {"sha256": "0" * 64}


def test_a_checkpoint_counts_by_its_content_by_path_or_uri_and_a_plan_fetches_none(tmp_path, monkeypatch):
    save_beats(load_beats("tiny"), tmp_path / "tiny.pt")
    first = with_resolved_files(load_system("s1", backbone=str(tmp_path / "tiny.pt")))
    moved = (tmp_path / "tiny.pt").rename(tmp_path / "100 % mine.pt")
    second = with_resolved_files(load_system("s1", backbone=str(moved)))
    assert first != second
    assert len({make_plan([system], None).branches[0].branch_id for system in (first, second)}) == 1
    assert with_resolved_files(load_system("s1", backbone=moved.as_uri())) == second
    monkeypatch.setenv("TUTTI_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").pipe("/small.pt", SMALL.read_bytes())
    digests = (SMALL_SHA256, SMALL_SHA256[:8], None)
    told, short, unknown = (BackboneSpec(path="memory://small.pt", sha256=digest) for digest in digests)
    assert resolve_file(told, fetch=False) == told
    for spec, message in (
        (BackboneSpec(path=str(tmp_path / "tiny.pt")), "tiny.pt: no such file.*--backbone FILE"),
        (BackboneSpec(path=str(moved), sha256="0" * 8), "has sha256"),
        (short, "memory://small.pt is not in the cache"),
        (unknown, "memory://small.pt is not in the cache"),
    ):
        with pytest.raises(InputError, match=message):
            resolve_file(spec, fetch=False)
    assert not (tmp_path / "cache").exists()
    assert resolve_file(unknown) == resolve_file(short, fetch=False) == told


def audio(*seconds, channels=2):
    start = np.cumsum([0, *(int(16_000 * s) * channels for s in seconds)])
    return AudioCache(np.empty(0, np.int16), start, np.full(len(seconds), channels))


def test_what_is_not_there_or_too_long_is_told_before_the_training_and_what_data_lack_noted(dataset, tmp_path):
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
    index = pa.table({"path": ["fan/train/short.wav", "fan/train/long.wav"]})
    check_lengths(index, audio(1, 59), [branch()])
    check_lengths(index, audio(1, 10**7), make_plan([], recorded()).branches)  # of log-mels
    with pytest.raises(InputError, match=r"fan/train/long.wav: 10000000 s are too long"):
        check_lengths(index, audio(1, 10**7), [branch()])
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
    for of_two_channels in ({"channel": "cancel"}, {"augmentation": {"noise": {}}}):
        assert notes(of_two_channels, index, channels=1) == [f"{len(index)} of {len(index)} clips have one channel"]


def test_a_plan_counts_a_generator_once_and_tells_which_configurations_hear_the_same_on_one_channel(dataset, tmp_path):
    generated = {"augmentation": {"generated": {}}}
    wanted = system(x={"branch": generated}, y={"branch": {**generated, "objective": "softmax"}, "seeds": [1, 2]})
    found, without = (overview([s], dataset, None) for s in (wanted, system(x={}, y={"seeds": [1, 2]})))
    assert [row["steps"] for row in found["generated"]] == [20_000]
    assert found["cpu_hours"] - without["cpu_hours"] > 100  # what is for a GPU
    assert ["settings are for a GPU" in note for note in found["notes"]] == [True]
    knn, cancel = {"detector": "knn"}, {"branch": {"channel": "cancel"}}
    heard = system(a={}, b=knn, c=cancel, d={**cancel, **knn})
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
    paths = "small", copy, "tiny", "not_yet_there.pt", "OpenBEATs-Large-i2"
    small, copied, tiny, absent, large = (petaflop(spec(path), 1000) for path in paths)
    assert copied == small  # whose file is in half precision
    assert large == pytest.approx(3.5 * absent, rel=0.01)
    assert (small / tiny, absent / small) == pytest.approx((7.69, 135.9), rel=1e-3)
    speeds = [core_gflops(spec(path)) for path in ("tiny", "small", "not_yet_there.pt")]
    assert speeds == sorted(set(speeds))
    costs = [petaflop(spec(strategy=name), 1000) for name in ("frozen", "head", "lora", "full")]
    assert costs == sorted(set(costs))
    assert petaflop(spec(strategy="frozen"), 2000) == 2 * costs[0]
    for setting, usual in (("steps", 10_000), ("batch_size", 32), ("accumulation", 1), ("crop_seconds", 10)):
        twice = petaflop(spec(strategy="full", training={setting: 2 * usual}), 1000)
        assert twice - costs[0] == pytest.approx(2 * (costs[-1] - costs[0]))
    assert [duration(s) for s in (8.2, 89, 91, 5300, 11100)] == ["8 s", "89 s", "2 min", "88 min", "3 h 05 min"]
