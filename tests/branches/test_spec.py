import json
from pathlib import Path
from typing import get_args

from branches import spec as spec_module
from branches.spec import BranchSpec, GeneratorSpec, PatchesSpec, Settings, TrainingSpec

SETTINGS = Path(__file__).parents[2] / "docs" / "settings.md"


def spec(**settings):
    return BranchSpec.model_validate(settings)


def test_a_frozen_branch_is_its_backbone_and_channel():
    """Two that differ in what is not used are one branch, and one that is read keeps what it says beside."""
    full = spec(strategy="frozen", channel="far", seed=3, backbone={"path": "small", "layers": [0]}, embedding_dim=9)
    assert json.loads(full.model_dump_json()) == {
        "backbone": {"path": "small", "sha256": None, "precision": "float32"},
        "channel": "far",
        "strategy": {"name": "frozen"},
        "seed": 3,
    }
    assert full.model_dump(exclude_unset=True)["embedding_dim"] == 9
    assert spec().model_dump()["backbone"]["layers"] == (-1,)


def test_frozen_embeddings_are_wanted_of_frozen_branches_and_for_pseudo_labels():
    embeddings, frozen = [PatchesSpec(), PatchesSpec(layers=(0,))], spec(strategy="frozen")
    assert frozen.frozen_inputs(embeddings) == [(frozen, embedding) for embedding in embeddings]
    assert spec().frozen_inputs(embeddings) == []
    backbone = {"path": "small", "sha256": "d184fd97", "layers": [0], "precision": "bfloat16"}
    other = {"channel": "near", "pooling": "band_mean"}
    for pseudo_labels, channel, pooling in (({}, "far", "mean"), (other, "near", "band_mean")):
        clustered = spec(classes={"pseudo_labels": pseudo_labels}, backbone=backbone, channel="far")
        as_it_is = spec(strategy="frozen", channel=channel, backbone={"path": "small", "sha256": "d184fd97"})
        wanted = PatchesSpec.model_validate({"layers": [0], "pooling": pooling})
        assert clustered.frozen_inputs(embeddings) == [(as_it_is, wanted)]


def test_a_generator_trains_as_its_settings_say():
    settings = {"steps": 7, "batch_size": 3, "crop_seconds": 1, "learning_rate": 0.5, "warmup_steps": 2}
    assert GeneratorSpec(**settings).training == TrainingSpec(**settings)


def test_the_defaults_are_those_of_the_page():
    page, told = SETTINGS.read_text(encoding="utf-8"), 0
    for settings in (s for s in vars(spec_module).values() if isinstance(s, type) and issubclass(s, Settings)):
        for name, field in settings.model_fields.items():
            default = getattr(field.default, "name", field.default)
            if isinstance(default, (bool, int, float, str, tuple)) and len(get_args(field.annotation)) != 1:
                default = default if name != "tokenizers" else [file.path for file in default]
                assert f".{name}` | {json.dumps(default)} |".replace('"', "") in page, (settings, name)
                told += 1
    assert told > 50
