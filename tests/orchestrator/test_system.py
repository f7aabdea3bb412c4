import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from branches.spec import BranchSpec
from orchestrator.system import SYSTEMS, built_in_systems, load_system, load_systems
from scoring.detectors import KnnSpec
from scoring.errors import InputError


@pytest.fixture
def write(tmp_path):
    def write(text, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("name", [path.stem for path in SYSTEMS.glob("*.yaml")])
def test_built_in_systems_are_valid(name):
    system = load_system(name)
    assert system.name == name
    assert system.description


def test_the_report_has_one_branch_in_system_1_and_ten_in_system_2():
    count = {
        name: sum(len(c.seeds) for cs in load_system(name).subsystems.values() for c in cs.values())
        for name in ("s1", "s2")
    }
    assert count == {"s1": 1, "s2": 10}


def test_shared_settings_reach_every_configuration_that_does_not_replace_them(write):
    system = load_system(
        write(
            """
name: mine
branch: {channel: far, objective: {name: softmax}}
subsystems:
  one:
    plain:
    other: {branch: {objective: {name: arcface, margin: 0.1}}, seeds: [3, 4]}
"""
        )
    )
    plain, other = system.subsystems["one"].values()
    assert (plain.branch.channel, plain.branch.objective.name, plain.seeds) == ("far", "softmax", (0,))
    assert (other.branch.channel, other.branch.objective.margin, other.seeds) == ("far", 0.1, (3, 4))


def test_a_built_in_backbone_takes_the_settings_for_it_of_the_file_and_of_the_configuration(write):
    path = write(
        """
name: mine
branch: {objective: softmax, augmentation: {time_mask: 80}}
tiny: {augmentation: {time_mask: 20}, embedding_dim: 8}
subsystems:
  one:
    plain:
    other: {branch: {augmentation: {frequency_mask: 1}}, tiny: {augmentation: {frequency_mask: 2}}}
"""
    )

    def settings(backbone):
        return [
            (c.branch.augmentation.time_mask, c.branch.augmentation.frequency_mask, c.branch.embedding_dim)
            for c in load_system(path, backbone).subsystems["one"].values()
        ]

    assert settings("tiny") == settings("small") == [(20, 0, 8), (0, 2, 8)]
    assert settings(None) == settings("mine.pt") == [(80, 0, 256), (0, 1, 256)]


def test_a_built_in_backbone_is_heard_where_the_tiny_block_says(write):
    path = write(
        """
name: mine
branch: {backbone: {path: mine.pt, sha256: 12345678}}
tiny: {backbone: {layers: [1]}, pooling: band_statistics}
subsystems:
  one:
    head:
    patches: {embedding: {pooling: mean}}
    frozen: {branch: {strategy: frozen, pooling: band_mean}}
    last: {embedding: {layers: [-1]}, branch: {backbone: {path: other.pt, layers: [6]}}}
"""
    )

    def layers(backbone):
        system = load_system(path, backbone)
        assert {c.branch.backbone.path for c in system.subsystems["one"].values()} >= {backbone or "mine.pt"}
        return {
            name: [list(of.layers) for of in (c.branch.backbone, c.embedding) if hasattr(of, "layers")]
            for name, c in system.subsystems["one"].items()
        }

    own = {"last": [[6], [-1]]}
    for backbone in ("tiny", "small"):
        assert layers(backbone) == {"head": [[1]], "patches": [[1], [1]], "frozen": [[-1], [1]], **own}
    for backbone in (None, "given.pt"):
        assert layers(backbone) == {"head": [[-1]], "patches": [[-1], [-1]], "frozen": [[-1], [-1]], **own}


def test_what_a_frozen_branch_gives_is_its_embedding(write):
    text = """
name: x
branch: {backbone: {path: small, layers: [0, 1], precision: bfloat16}, pooling: {name: relative_deviation, gamma: 4}}
subsystems:
  a:
    short: {branch: {strategy: frozen, channel: far, objective: softmax, training: {steps: 3}}}
    long:
      branch: {strategy: frozen, channel: far, pooling: attentive_statistics}
      embedding: {layers: [0, 1], pooling: {name: relative_deviation, gamma: 4}}
    layer: {branch: {strategy: frozen, channel: far}, embedding: {pooling: band_mean}}
    last: {branch: {strategy: frozen, channel: far}, embedding: {layers: [-1]}}
"""
    short, long, layer, last = load_system(write(text)).subsystems["a"].values()
    assert short == long
    assert (layer.embedding.layers, last.embedding.layers) == ((0, 1), (-1,))
    backbone = {"path": "small", "precision": "bfloat16"}
    only = BranchSpec.model_validate({"backbone": backbone, "channel": "far", "strategy": "frozen"})
    assert {c.branch for c in (short, layer, last)} == {only}
    assert only.model_dump(mode="json") == {
        "backbone": {**backbone, "sha256": None},
        "channel": "far",
        "strategy": {"name": "frozen"},
        "seed": 0,
    }


def test_a_given_backbone_replaces_every_other():
    system = load_system("s2", backbone="tiny")
    assert {c.branch.backbone.path for cs in system.subsystems.values() for c in cs.values()} == {"tiny"}
    assert {c.branch.backbone.sha256 for cs in system.subsystems.values() for c in cs.values()} == {None}


def test_a_given_backbone_leaves_log_mels_as_they_are():
    system = load_system("solo", backbone="tiny")
    paths = {c.branch.backbone.path for cs in system.subsystems.values() for c in cs.values()}
    assert paths == {"log_mel", "tiny"}
    with pytest.raises(InputError, match="log_mel is no network"):
        load_system("s1", backbone="log_mel")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nsubsytems: {}", "subsystems: Field required"),
        ("name: x\nfoo: 1\nsubsystems: {a: {b: }}", "foo: unknown key; allowed: branch, description, name, subsystems"),
        (
            "name: x\nsubsystems: {a: {b: {branch: {objective: {name: arcface, marg: 1}}}}}",
            "objective.marg: unknown key; did you mean margin.; allowed: margin, name, scale",
        ),
        (
            "name: x\nbranch: {training: {stps: 1}}\nsubsystems: {a: {b: }}",
            "branch.training.stps: unknown key; did you mean steps.; allowed: accumulation",
        ),
        ("name: x\nsubsystems: {a: {b: {branch: {objective: {name: arc}}}}}", "'softmax', 'arcface'"),
        ("name: x\nsubsystems: {a: {b: {branch: {channel: up}}}}", "'near', 'far', 'mean' or 'cancel'"),
        (
            "name: x\nsubsystems: {a: {b: {detector: {name: knn, k: 0}}}}",
            "detector.k: .* greater than or equal to 1",
        ),
        ("name: x\nsubsystems: {a: {b: {seeds: [1, 1]}}}", "seeds must be distinct"),
        ("name: x\nsubsystems: {}", "subsystems"),
        ("name: x\nsubsystems: {a: {}}", "subsystems.a"),
        ("name: x\nsubsystems: {a: {b: {seeds: [one]}}}", "seeds.0: Input should be a valid integer"),
        ("name: x\nsubsystems: {a: {b: {seeds: [99999999999]}}}", "seeds.0: Input should be less than"),
        ("name: x\nbranch: {objective: {name: arcface, scale: inf}}\nsubsystems: {a: {b: }}", "finite number"),
        ("name: a b\nsubsystems: {a: {b: }}", "name"),
        ("name: x\nsubsystems: 3", "subsystems"),
        ("name: x\nsubsystems: {a: 3}", "subsystems.a"),
        ("name: x\nbranch: 3\nsubsystems: {a: {b: }}", "branch"),
        ("name: x\nsubsystems: {a: {m=0.5: }}", "a.m=0.5.*should match pattern"),
        (
            "- a list",
            "mine.yaml: Input should be a mapping with keys among branch, description, name",
        ),
        ("name: x\nsubsystems: {a: {b: , b: }}", "b appears twice"),
        ("name: x\nname: y\nsubsystems: {a: {b: }}", "name appears twice"),
        ("name: x\nbranch: {seed: 1}\nsubsystems: {a: {b: }}", "branch: seed is not given here; .* lists its `seeds`"),
        (
            "name: x\nsubsystems: {a: {b: {branch: {seed: 1}}}}",
            "b.branch: seed is not given here; .* its `seeds`",
        ),
        ("name: x\nsubsystems: {a: {b: {tiny: {training: {stps: 1}}}}}", "b.tiny.training.stps: unknown key"),
        ("name: x\nsubsystems: {a: {b: {tin: {}}}}", "a.b.tin: unknown key; did you mean tiny"),
        ("name: x\nbranch: [1]\nsubsystems: {a: {b: }}", "branch"),
        ("name: x\nsubsystems: {a: {b: {branch: {strategy: frozen}}}}", "the pooling attentive_statistics must be"),
        ("name: x\nsubsystems: {a: {b: {detector: band_knn}}}", "pooling attentive_statistics keeps none"),
        (
            "name: x\nsubsystems: {a: {b: {detector: band_knn, embedding: {pooling: mean}}}}",
            "band_knn compares frequency bands, and the pooling mean keeps none; take one that does, such as band_mean",
        ),
        (
            "name: x\nsubsystems: {a: {b: {detector: band_knn, branch: {strategy: head, pooling: mean}}}}",
            "pooling mean keeps none",
        ),
        (
            "name: x\nsubsystems: {a: {b: {embedding: {pooling: attentive_statistics}}}}",
            "embedding.pooling: .*'attentive_statistics'.*'mean', 'band_mean', 'band_statistics'",
        ),
        (
            "name: x\nsubsystems: {a: {b: {embedding: {layer: [1]}}}}",
            "embedding.layer: unknown key; did you mean",
        ),
        ("name: x\nsubsystems: {a: {b: {embedding: heads}}}", "'projection', 'patches'"),
        ("name: x\nsubsystems: {a: {b: {branch: {strategy: frozen, pooling: mean}, seeds: [0, 1]}}}", "give one"),
        (
            "name: x\nsubsystems: {a: {b: {branch: {strategy: head, backbone: log_mel}}}}",
            "log_mel has no weights to train",
        ),
        (
            "name: x\nsubsystems: {a: {b: {branch: {channel: cancel, augmentation: {noise: {}}}}}}",
            "a.b: far noise is what the channel cancel removes",
        ),
        ("name: x\nsubsystems: {a: {b: {detector: {k: 3}}}}", "detector: Input should have a `name`"),
        (
            "name: x\nsubsystems: {a: {b: {branch: {classes: {pseudo_labels: many}}}}}",
            "classes.pseudo_labels: .* keys among channel, pooling, source, target",
        ),
        ("name: x\nsubsystems: {a: {b: {branch: {classes: {pseudo_labels: {sorce: 1}}}}}}", "did you mean source"),
        ("name: x\nsubsystems: [a, b]", "subsystems: Input should be a mapping"),
        ("name: x\nsubsystems:", "subsystems: Input should be a mapping"),
        ("", "name: Field required"),
        ("{", "not YAML"),
        ("[" * 10_000, "not YAML"),
        ("name: x\nbranch: {training: {steps: yes}}\nsubsystems: {a: {b: }}", "steps: .*integer.* 'yes'"),
        ("name: x\nbranch: {training: {steps: true}}\nsubsystems: {a: {b: }}", "steps: .*integer.* 'true'"),
        ("name: x\nbranch: {training: {steps: 1:30}}\nsubsystems: {a: {b: }}", "steps: .*integer.* '1:30'"),
        ("name: x\nbranch: {training: {steps: 0x10}}\nsubsystems: {a: {b: }}", "steps: .*integer.* '0x10'"),
    ],
)
def test_what_is_wrong_is_named_with_the_file(write, text, message):
    with pytest.raises(InputError, match=message) as raised:
        load_system(write(text))
    assert "mine.yaml" in str(raised.value)


def test_scalars_are_what_they_look_like(write):
    text = """
name: no
branch: {backbone: {path: 2026-02-30, sha256: 12345678}, training: {steps: 010, learning_rate: 1e-4}}
subsystems: {on: {off: {seeds: [00, 1_000], detector: {name: mahalanobis, standardised: yes, shrinkage: .5}}}}
"""
    system = load_system(write(text), overrides=["branch.training.batch_size=04"])
    assert system.name == "no"
    (configuration,) = system.subsystems["on"].values()
    training = configuration.branch.training
    assert (training.steps, training.learning_rate, training.batch_size) == (10, 1e-4, 4)
    assert configuration.seeds == (0, 1000)
    assert (configuration.detector.standardised, configuration.detector.shrinkage) == (True, 0.5)
    assert (configuration.branch.backbone.path, configuration.branch.backbone.sha256) == ("2026-02-30", "12345678")


@pytest.mark.parametrize("name", built_in_systems())
def test_a_system_as_it_is_shown_is_a_system_file(write, name):
    system = load_system(name)
    assert load_system(write(yaml.safe_dump(system.model_dump(mode="json")))) == system


def test_all_mistakes_of_a_file_are_told_at_once(write):
    text = """
name: x
branch: {traning: {steps: 3}, channel: up}
subsystems: {a: {b: {seeds: 3, detector: [knn, knn]}, c: {branch: {objective: arcfce}, seeds: ["1", b]}}, d e: {f: 3}}
"""
    with pytest.raises(InputError) as raised:
        load_system(write(text))
    mistakes = str(raised.value).splitlines()
    assert [mistake.split(": ")[1] for mistake in mistakes] == [
        "branch.channel",
        "branch.traning",
        "subsystems.a.b.detector",
        "subsystems.a.b.seeds",
        "subsystems.a.c.branch.objective",
        "subsystems.a.c.seeds.1",
        "subsystems.d e.[key]",
        "subsystems.d e.f",
    ]
    assert "did you mean training?" in mistakes[1]
    assert "a further one is a further configuration" in mistakes[2]
    assert "a list, such as [0, 1, 2]" in mistakes[3]


def test_a_backbone_may_be_a_bare_name(write):
    system = load_system(write("name: x\nsubsystems: {a: {b: {branch: {backbone: tiny}}}}"))
    assert system.subsystems["a"]["b"].branch.backbone.path == "tiny"


def test_settings_are_overridden_in_every_configuration(write):
    path = write("name: x\nsubsystems: {a: {b: , c: {branch: {objective: softmax, training: {batch_size: 4}}}}}")
    system = load_system(path, None, ["branch.training.steps=30", "seeds=[1, 2]", "detector.name=knn", "detector.k=3"])
    for configuration in system.subsystems["a"].values():
        assert configuration.branch.training.steps == 30
        assert configuration.seeds == (1, 2)
        assert configuration.detector == KnnSpec(k=3)
    assert system.subsystems["a"]["c"].branch.training.batch_size == 4
    assert system.subsystems["a"]["c"].branch.objective.name == "softmax"
    with pytest.raises(InputError, match="unknown key; did you mean steps"):
        load_system(path, None, ["branch.training.stps=30"])
    with pytest.raises(InputError, match=r"s2.yaml with --set: branch.trainin: unknown key; did you mean training.*$"):
        load_system("s2", overrides=["branch.trainin.steps=3"])  # in ten configurations, told once


def test_settings_beside_a_choice_that_is_given_by_its_name(write):
    path = write("name: x\nsubsystems: {a: {b: {branch: {backbone: small, objective: arcface}, embedding: patches}}}")
    overrides = ["branch.backbone.precision=bfloat16", "branch.objective.scale=3", "embedding.pooling=mean"]
    (configuration,) = load_system(path, None, overrides).subsystems["a"].values()
    assert (configuration.branch.backbone.path, configuration.branch.backbone.precision) == ("small", "bfloat16")
    assert configuration.branch.objective.scale == 3
    assert configuration.embedding.pooling.name == "mean"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("steps", "--set 'steps': give KEY=VALUE"),
        ("steps=3", "steps: unknown key; did you mean seeds.; allowed: branch, detector, embedding, expected, seeds$"),
        ("branch=3", "branch: Input should be a mapping with keys among augmentation, "),
        ("branch.embedding_dim.x=1", "branch.embedding_dim: .*integer"),
        ("detector.name.x=1", "detector: Input tag "),
        ("seeds.x=1", "seeds: Input should be a list"),
        ("branch.seed=1", "branch: seed is not given here"),
        ("detector=band_knn", "set: band_knn compares frequency bands"),
        ("detector.k={", "not YAML"),
        ("=", "unknown key"),
        ("..=", "unknown key"),
    ],
)
def test_what_is_wrong_with_an_override_is_told_in_one_line(override, message):
    with pytest.raises(InputError, match=message) as raised:
        load_system("s2", overrides=[override])
    assert "\n" not in str(raised.value)


def test_unknown_systems_and_files(tmp_path):
    with pytest.raises(InputError, match=r"unknown system 's99'; give a YAML file or one of demo, ladder, s1, s2"):
        load_system("s99")
    with pytest.raises(InputError, match="unknown system"):
        load_system("../systems/s1")
    with pytest.raises(InputError, match="cannot be read"):
        load_system(str(tmp_path / "none.yaml"))


def test_two_systems_of_one_name_are_refused(write):
    text = "name: demo\nsubsystems: {a: {b: }}"
    with pytest.raises(InputError, match="the same name"):
        load_systems(["demo", write(text)])
    assert [s.name for s in load_systems(["demo", "demo"])] == ["demo"]


def test_shared_settings_may_need_what_a_configuration_adds(write):
    system = load_system(write("name: x\nbranch: {strategy: frozen}\nsubsystems: {a: {b: {branch: {pooling: mean}}}}"))
    assert system.subsystems["a"]["b"].branch.is_frozen


WHOLE = """
name: whole
description: with one of each
branch: {channel: near, objective: arcface, training: {steps: 3}, classes: {pseudo_labels: {source: 3}}}
tiny: {embedding_dim: 8, augmentation: {noise: {snr_db: [3, 5]}}}
subsystems:
  one:
    plain:
    other:
      branch: {backbone: {path: small, layers: [1]}, masked_prediction: {}, strategy: {name: lora, targets: [fc1]}}
      tiny: {objective: {name: subcenter_arcface, centres: 2}, pooling: mean}
      embedding: {pooling: {name: relative_deviation, gamma: 4}}
      detector: {name: knn, density: {name: difference, weight: fitted}}
      seeds: [0, 1]
      expected: 60
"""
KEYS = st.sampled_from(["branch", "tiny", "seeds", "name", "source", "detector", "k", *BranchSpec.model_fields])
SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.dates() | st.binary(max_size=3)
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | SCALARS, inner, max_size=3),
    max_leaves=8,
)
OVERRIDES = st.tuples(
    st.lists(KEYS | st.text(max_size=3), max_size=4), st.text(max_size=8) | VALUES.map(yaml.safe_dump)
)


@st.composite
def changed_systems(draw):
    """`WHOLE` with any value at any place."""
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


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(system=changed_systems() | VALUES, backbone=st.sampled_from([None, "tiny"]))
def test_any_value_anywhere_is_accepted_or_told(write, system, backbone):
    accepted_or_told(write(yaml.safe_dump(system)), backbone)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(overrides=st.lists(OVERRIDES.map(lambda pair: "=".join([".".join(pair[0]), pair[1]])) | st.text(), max_size=3))
def test_any_override_is_accepted_or_told(write, overrides):
    accepted_or_told(write(WHOLE), None, overrides)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.binary() | st.text(alphabet="{}[]:,-&*!<|>?%@`'\"#~ \nan0").map(str.encode))
@example(text=b"name: !!int x")
@example(text=b"name: &a {<<: *a}")
@example(text=b"name: &a [*a]")
def test_any_text_is_accepted_or_told(tmp_path, text):
    (tmp_path / "any.yaml").write_bytes(text)
    accepted_or_told(str(tmp_path / "any.yaml"))
