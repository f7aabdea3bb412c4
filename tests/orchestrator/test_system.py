"""System files: what they may say, and what is told of one that cannot be used."""

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from branches.spec import PROJECTION, BranchSpec
from orchestrator.system import SYSTEMS, built_in_systems, load_system, load_systems
from scoring.detectors import KnnSpec
from scoring.errors import InputError

ANYTHING = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


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


def test_shared_settings_reach_every_configuration_that_does_not_replace_them(system_file):
    text = """
name: mine
branch: {channel: far, strategy: frozen}
subsystems:
  one:
    plain: {branch: {pooling: mean}}
    other: {branch: {strategy: full, channel: cancel, augmentation: {noise: {source: supplemental}}}, seeds: [3, 4]}
"""
    found = load_system(system_file(text)).subsystems["one"].values()
    kinds = [(c.branch.channel, c.branch.strategy.name, c.seeds) for c in found]
    assert kinds == [("far", "frozen", (0,)), ("cancel", "full", (3, 4))]


def test_a_built_in_backbone_takes_the_settings_for_it_and_a_given_one_replaces_every_other(system_file):
    path = system_file(
        """
name: mine
branch: {backbone: {path: mine.pt, sha256: 12345678}, augmentation: {time_mask: 80}}
tiny: {backbone: {layers: [1]}, augmentation: {time_mask: 20}, embedding_dim: 8}
subsystems:
  one:
    masked: {branch: {augmentation: {frequency_mask: 1}}, tiny: {augmentation: {frequency_mask: 2}}}
    own: {branch: {backbone: {path: other.pt, layers: [6]}, embedding_dim: 4}}
"""
    )

    def values(backbone):
        branches = [c.branch for c in load_system(path, backbone).subsystems["one"].values()]
        masks = [(b.augmentation.time_mask, b.augmentation.frequency_mask) for b in branches]
        files = [(b.backbone.path, b.backbone.sha256) for b in branches]
        return masks, [(b.embedding_dim, b.backbone.layers[0]) for b in branches], files

    for name in ("tiny", "small"):
        assert values(name) == ([(0, 2), (20, 0)], [(8, 1), (4, 6)], [(name, None)] * 2)
    full = [(0, 1), (80, 0)], [(256, -1), (4, 6)]
    assert values("given.pt") == (*full, [("given.pt", None)] * 2)
    assert values(None) == (*full, [("mine.pt", "12345678"), ("other.pt", None)])


def test_a_given_backbone_leaves_log_mels_as_they_are():
    system = load_system("solo", backbone="tiny")
    assert {c.branch.backbone.path for cs in system.subsystems.values() for c in cs.values()} == {"log_mel", "tiny"}
    with pytest.raises(InputError, match="log_mel is no network"):
        load_system("s1", backbone="log_mel")


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
    head, patches, last, short, long = load_system(system_file(text)).subsystems["a"].values()
    assert head.embedding == PROJECTION
    assert [c.embedding.layers for c in (patches, last, short)] == [(0, 1), (-1,), (0, 1)]
    assert short == long
    backbone = {"path": "small", "precision": "bfloat16", "sha256": None}
    frozen = {"backbone": backbone, "channel": "far", "strategy": {"name": "frozen"}, "seed": 0}
    assert short.branch == BranchSpec.model_validate(frozen)
    assert short.branch.model_dump(mode="json") == frozen


@pytest.mark.parametrize(
    ("configuration", "message"),
    [
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
    ],
)
def test_what_is_wrong_is_named_with_the_file(system_file, configuration, message):
    with pytest.raises(InputError, match=f"mine.yaml: .*{message}"):
        load_system(system_file(f"name: x\nsubsystems: {{a: {{b: {configuration}}}}}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "name: Field required"),
        ("- a list", "Input should be a mapping with keys among branch, description, name, subsystems, tiny"),
        ("name: x\nsubsystems: {a: {}}", "subsystems.a: .* at least 1"),
        ("name: x\nbranch: {seed: 1}\nsubsystems: {a: {b: }}", "branch: seed is not given here"),
        ("[" * 500, "not YAML"),
        ("name: !own x", "not YAML: unknown tag"),
    ],
)
def test_a_file_that_is_no_system_is_named(system_file, text, message):
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
    for c in load_system(system_file(text), None, overrides).subsystems["a"].values():
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
    with pytest.raises(InputError, match=r"unknown system 's99'; give a YAML file or one of demo, ladder, s1, s2"):
        load_system("s99")
    with pytest.raises(InputError, match="unknown system"):
        load_system("../systems/s1")
    with pytest.raises(InputError, match=r"none.yaml: cannot be read \(No such file"):
        load_system(str(tmp_path / "none.yaml"))
    with pytest.raises(InputError, match="the same name"):
        load_systems(["demo", system_file("name: demo\nsubsystems: {a: {b: }}")])
    assert [s.name for s in load_systems(["demo", "demo"])] == ["demo"]


WHOLE = (SYSTEMS / "s5.yaml").read_text()
KEYS = st.sampled_from(["branch", "tiny", "seeds", "name", "source", "detector", "k", *BranchSpec.model_fields])
NUMBERS = st.integers() | st.floats() | st.booleans() | st.none()
SCALARS = NUMBERS | st.text(max_size=5) | st.dates() | st.binary(max_size=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | SCALARS, inner, max_size=3),
    max_leaves=8,
)
OVERRIDES = st.builds(
    lambda keys, value: f"{'.'.join(keys)}={value}",
    st.lists(KEYS | st.text(max_size=3), max_size=4),
    st.text(max_size=8) | VALUES.map(yaml.safe_dump),
)


@st.composite
def changed_systems(draw):
    """A system with any value at any place."""
    block = whole = yaml.safe_load(WHOLE)
    while True:
        key = draw(st.sampled_from(list(block)) | KEYS | SCALARS)
        if not isinstance(block.get(key), dict) or draw(st.booleans()):
            block[key] = draw(VALUES)
            return whole
        block = block[key]


def accepted_or_told(path, backbone=None, overrides=()):
    try:
        load_system(path, backbone, overrides)
    except InputError as error:
        lines = str(error).splitlines()
        assert all(line.startswith((path, "--set")) and ": " in line for line in lines)
        assert len(set(lines)) == len(lines)


@ANYTHING
@given(changed_systems() | VALUES, st.sampled_from([None, "tiny"]), st.lists(OVERRIDES | st.text(), max_size=3))
def test_any_value_anywhere_and_any_override_is_accepted_or_told(system_file, system, backbone, overrides):
    accepted_or_told(system_file(yaml.safe_dump(system)), backbone)
    accepted_or_told(system_file(WHOLE), backbone, overrides)


@ANYTHING
@given(text=st.binary() | st.text(alphabet="{}[]:,-&*!<|>?%@`'\"#~ \nan0").map(str.encode))
@example(text=b"name: &a {<<: *a}")
@example(text=b"name: &a [*a]")
def test_any_text_is_accepted_or_told(tmp_path, text):
    (tmp_path / "any.yaml").write_bytes(text)
    accepted_or_told(str(tmp_path / "any.yaml"))
