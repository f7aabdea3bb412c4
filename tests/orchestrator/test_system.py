"""System files: what they may say, and what is told of one that cannot be used; and the built-in systems."""

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from branches.spec import PROJECTION, BranchSpec
from orchestrator.plan import make_plan
from orchestrator.system import SYSTEMS, built_in_systems, load_system, load_systems
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
    ("arguments", "message"),
    [
        (("s99",), "unknown system 's99'; give a YAML file or one of demo, ladder, s1, s2"),
        (("../systems/s1",), "unknown system"),
        (("none.yaml",), r"none.yaml: cannot be read \(No such file"),
        (("s1", "log_mel"), "log_mel is no network"),
        (("s2", None, ["steps"]), "^--set 'steps': give KEY=VALUE"),
        (("s2", None, ["detector.k={"]), "^--set 'detector.k={': not YAML"),
        (
            ("s2", None, ["steps=3"]),
            "yaml with --set: steps: unknown key; did you mean seeds.; allowed: .*, seeds$",
        ),
        (("s2", None, ["branch.trainin.steps=3"]), "yaml with --set: branch.trainin: unknown key; .* training.*$"),
        (("s2", None, ["branch.seed=1"]), "branch: seed is not given here"),
        (("s2", None, ["detector=band_knn"]), "with --set: band_knn compares frequency bands"),
        (("s2", None, ["..="]), "unknown key"),
    ],
)
def test_what_is_wrong_with_a_name_or_an_override_is_told_once_for_all_configurations(arguments, message):
    with pytest.raises(InputError, match=message) as raised:
        load_system(*arguments)
    assert "\n" not in str(raised.value)


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


def test_the_systems_are_as_large_as_their_page_says_and_differ_and_share_branches_as_the_report_does():
    told = re.findall(r"^\| `(\w+)` \| (\d+) \| (\d+) \|", PAGE, re.MULTILINE)
    tables = {name: sum(len(c.seeds) for c in configurations(name)) for name in built_in_systems()}
    assert {name: (int(b), int(t)) for name, b, t in told} == {n: (len(branches(n)), tables[n]) for n in tables}
    assert len(branches("s1", "s2")) == len(branches("s2")) == 10
    specs = [branch.spec for branch in branches("s2")]
    assert {spec.objective.name for spec in specs} == {"arcface", "softmax", "subcenter_arcface"}
    assert {spec.strategy.name for spec in specs} == {"full", "partial", "lora"}
    assert {branch.scorings[0].detector.name for branch in branches("s1", "s2", "s4")} == {"mahalanobis"}
    fourth, fifth = ([c.branch for c in configurations(name) if not c.branch.is_frozen] for name in ("s4", "s5"))
    (generated,) = {(b.augmentation.generated, b.channel) for b in fourth}
    assert {(b.augmentation.generated, b.channel) for b in fifth if b.augmentation.generated} == {generated}


def test_each_step_of_the_ladder_is_the_published_recipe():
    steps = configurations("ladder")
    kinds = [(c.branch.channel, c.branch.strategy.name, getattr(c.embedding.pooling, "gamma", 0)) for c in steps]
    near = [("near", "frozen", 0), ("near", "frozen", 4), ("near", "frozen", 8), ("near", "lora", 4)]
    assert kinds == [*near, ("cancel", "frozen", 4), ("cancel", "lora", 4)]
    detector = BandKnnSpec(banks="pooled", density={"name": "difference", "weight": "fitted"})
    assert {c.detector for c in steps} == {detector}
    assert all(f"{c.expected:.2f}" in PAGE for c in steps)
