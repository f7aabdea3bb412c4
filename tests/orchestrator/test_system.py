"""System files: what they may say, and what is told of one that cannot be used; and the built-in systems."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from branches.audio.cache import open_cache
from branches.audio.channels import with_cancellation
from branches.data.dataset import read_index
from branches.frozen import frozen_embeddings
from branches.spec import PROJECTION, BranchSpec
from branches.training.finetuning import train
from branches.training.training_set import training_clips
from orchestrator.plan import make_plan
from orchestrator.system import SYSTEMS, built_in_systems, load_system, load_systems
from scoring.detectors import BandKnnSpec, KnnSpec
from scoring.errors import InputError

ANYTHING = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PAGE = (Path(__file__).parents[2] / "docs" / "systems.md").read_text()


def configurations(name, backbone=None):
    return [c for configurations in load_system(name, backbone).subsystems.values() for c in configurations.values()]


def branches(*names):
    return make_plan(load_systems(names, backbone="tiny"), None).branches


@pytest.fixture
def system_file(tmp_path):
    """The path of a file with a text."""

    def path(text):
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return path


@pytest.mark.parametrize("name", built_in_systems())
def test_a_system_as_it_is_shown_is_a_system_file(system_file, name):
    system = load_system(name)
    assert (system.name, bool(system.description)) == (name, True)
    assert load_system(system_file(yaml.safe_dump(system.model_dump(mode="json")))) == system


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
        branches = [c.branch for c in configurations(path, backbone)]
        masks = [(b.augmentation.time_mask, b.augmentation.frequency_mask) for b in branches]
        files = [(b.backbone.path, b.backbone.sha256) for b in branches]
        return masks, [(b.embedding_dim, b.backbone.layers[0]) for b in branches], files

    for name in ("tiny", "small"):
        assert values(name) == ([(0, 2), (20, 0)], [(8, 1), (4, 6)], [(name, None)] * 2)
    full = [(0, 1), (80, 0)], [(256, -1), (4, 6)]
    assert values("given.pt") == (*full, [("given.pt", None)] * 2)
    assert values(None) == (*full, [("mine.pt", "12345678"), ("other.pt", None)])
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
    ("{foo: 1}", "a.b.foo: unknown key; allowed: branch, detector, embedding, expected, seeds"),
    ("{tiny: {training: {stps: 1}}}", "b.tiny.training.stps: unknown key; did you mean steps.; allowed: accum"),
    ("{branch: {objective: {name: arcface, scale: inf}}}", "finite number"),
    ("{branch: {training: {steps: 1:30}}}", "steps: .*integer.* '1:30'"),
    ("{branch: {seed: 1}}", "b.branch: seed is not given here; .* lists its `seeds`"),
    ("{seeds: 3}", r"a.b.seeds: Input should be a list, such as \[0, 1, 2\]"),
    ("{seeds: [1, 1]}", "seeds must be distinct"),
    ("{seeds: [99999999999]}", "seeds.0: Input should be less than"),
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


def test_all_mistakes_of_a_file_are_told_at_once(system_file):
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


def test_scalars_are_what_they_look_like(system_file):
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


def test_settings_are_overridden_in_every_configuration_also_beside_a_choice_given_by_its_name(system_file):
    text = "name: x\nsubsystems: {a: {b: , c: {branch: {backbone: small, objective: arcface, training: {steps: 4}}}}}"
    overrides = ["branch.training.batch_size=30", "seeds=[1, 2]", "detector.name=knn", "detector.k=3"]
    overrides += ["branch.backbone.precision=bfloat16", "branch.objective.name=arcface", "branch.objective.scale=3"]
    for c in load_system(system_file(text), overrides=overrides).subsystems["a"].values():
        assert (c.branch.training.batch_size, c.seeds, c.detector) == (30, (1, 2), KnnSpec(k=3))
        assert (c.branch.backbone.precision, c.branch.objective.scale) == ("bfloat16", 3)
    assert (c.branch.training.steps, c.branch.backbone.path) == (4, "small")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "^--set 'steps': give KEY=VALUE"),
        ("detector.k={", "^--set 'detector.k={': not YAML"),
        ("steps=3", "s2.yaml with --set: steps: unknown key; did you mean seeds.; allowed: branch, .*, seeds$"),
        ("branch.trainin.steps=3", "s2.yaml with --set: branch.trainin: unknown key; did you mean training.*$"),
        ("branch.seed=1", "branch: seed is not given here"),
        ("detector=band_knn", "with --set: band_knn compares frequency bands"),
        ("..=", "unknown key"),
    ],
)
def test_what_is_wrong_with_an_override_is_told_once_for_all_configurations(override, message):
    with pytest.raises(InputError, match=message) as raised:
        load_system("s2", overrides=[override])
    assert "\n" not in str(raised.value)


def test_unknown_systems_and_two_of_one_name_are_refused(system_file, tmp_path):
    for name, backbone, message in (
        ("s99", None, "unknown system 's99'; give a YAML file or one of demo, ladder, s1, s2"),
        ("../systems/s1", None, "unknown system"),
        (str(tmp_path / "none.yaml"), None, r"none.yaml: cannot be read \(No such file"),
        ("s1", "log_mel", "log_mel is no network"),
    ):
        with pytest.raises(InputError, match=message):
            load_system(name, backbone)
    with pytest.raises(InputError, match="the same name"):
        load_systems(["demo", system_file("name: demo\nsubsystems: {a: {b: }}")])
    assert [s.name for s in load_systems(["demo", "demo"])] == ["demo"]


WHOLE = (SYSTEMS / "s5.yaml").read_text()
KEYS = st.sampled_from(["branch", "tiny", "seeds", "name", "source", "detector", "k", *BranchSpec.model_fields])
SCALARS = st.integers() | st.floats() | st.booleans() | st.none() | st.text(max_size=5) | st.dates()
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | SCALARS, inner, max_size=3),
    max_leaves=8,
)
SYSTEMS_WITH_ANY_VALUE = st.builds(lambda key, value: {**yaml.safe_load(WHOLE), key: value}, KEYS | SCALARS, VALUES)
PLACES = st.lists(KEYS | st.text(max_size=3), max_size=4).map(".".join)
OVERRIDES = st.builds("{}={}".format, PLACES, st.text(max_size=8) | VALUES.map(yaml.safe_dump)) | st.text()


def accepted_or_told(path, backbone=None, overrides=()):
    try:
        load_system(path, backbone, overrides)
    except InputError as error:
        lines = str(error).splitlines()
        assert all(line.startswith((path, "--set")) and ": " in line for line in lines)
        assert len(set(lines)) == len(lines)


@ANYTHING
@given(SYSTEMS_WITH_ANY_VALUE | VALUES, st.sampled_from([None, "tiny"]), st.lists(OVERRIDES, max_size=3))
def test_any_value_anywhere_and_any_override_is_accepted_or_told(system_file, system, backbone, overrides):
    accepted_or_told(system_file(yaml.safe_dump(system)), backbone)
    accepted_or_told(system_file(WHOLE), backbone, overrides)


@ANYTHING
@given(st.binary() | st.text(alphabet="{}[]:,-&*!<|>?%@`'\"#~ \nan0").map(str.encode))
@example(b"name: &a {<<: *a}")
@example(b"name: &a [*a]")
def test_any_text_is_accepted_or_told(tmp_path, text):
    (tmp_path / "any.yaml").write_bytes(text)
    accepted_or_told(str(tmp_path / "any.yaml"))


def test_the_page_says_how_many_branches_and_tables_each_system_has():
    told = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", PAGE, re.MULTILINE)
    tables = {name: sum(len(c.seeds) for c in configurations(name)) for name in built_in_systems()}
    assert {name: (int(b), int(t)) for name, b, t in told} == {n: (len(branches(n)), tables[n]) for n in tables}


def test_the_systems_of_the_report_differ_as_it_says_and_share_their_branches():
    assert len(branches("s1", "s2")) == len(branches("s2")) == 10
    specs = [branch.spec for branch in branches("s2")]
    assert {spec.objective.name for spec in specs} == {"arcface", "softmax", "subcenter_arcface"}
    assert {spec.strategy.name for spec in specs} == {"full", "partial", "lora"}
    assert {spec.masked_prediction is None for spec in specs} == {True, False}
    assert {branch.scorings[0].detector.name for branch in branches("s1", "s2", "s4")} == {"mahalanobis"}
    heads = [c.branch for c in load_system("s5").subsystems["heads"].values()]
    assert {(head.strategy.name, head.objective.name) for head in heads} == {("head", "arcface")}
    fourth, fifth = ([c.branch for c in configurations(name) if not c.branch.is_frozen] for name in ("s4", "s5"))
    (generated,) = {(b.augmentation.generated, b.channel) for b in fourth}
    assert {(b.augmentation.generated, b.channel) for b in fifth if b.augmentation.generated} == {generated}


def test_each_step_of_the_ladder_is_the_published_recipe():
    """Channel, strategy and γ of the pooling, 0 being the mean; the formulas are tested where they are."""
    steps = configurations("ladder")
    kinds = [(c.branch.channel, c.branch.strategy.name, getattr(c.embedding.pooling, "gamma", 0)) for c in steps]
    near = [("near", "frozen", 0), ("near", "frozen", 4), ("near", "frozen", 8), ("near", "lora", 4)]
    assert kinds == [*near, ("cancel", "frozen", 4), ("cancel", "lora", 4)]
    detector = BandKnnSpec(banks="pooled", density={"name": "difference", "weight": "fitted"})
    assert {c.detector for c in steps} == {detector}
    assert all(f"{c.expected:.2f}" in PAGE for c in steps)


@pytest.mark.slow
def test_every_kind_of_branch_can_be_trained(dataset, tmp_path):
    """One of each objective, strategy and channel, with and without dual tokenizer."""
    index = read_index(dataset)
    audio = with_cancellation(open_cache(dataset, index, tmp_path / "cache"), tmp_path / "cache")
    short = ["training.steps=1", "training.batch_size=4", "training.crop_seconds=0.5", "augmentation.generated=null"]
    systems = load_systems(built_in_systems(), "tiny", [f"branch.{override}" for override in short])
    found = [(b.spec, b.embeddings) for b in make_plan(systems, None).branches]
    kinds = {(s.objective.name, s.strategy.name, s.channel, s.masked_prediction is None): (s, e) for s, e in found}
    for spec, embeddings in kinds.values():
        inputs = spec.frozen_inputs(embeddings)
        frozen = frozen_embeddings(inputs[0], inputs, audio, tmp_path, "cpu") if inputs else None
        assert frozen is None or len(frozen) == index.num_rows
        if not spec.is_frozen:
            train(spec, training_clips(audio, index, spec, frozen))
