"""Checkpoints of OpenBEATs: the fixtures' networks as its training leaves them, and in safetensors."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from branches.beats import load_beats, save_beats
from branches.beats.checkpoint import count_parameters
from branches.checkpoint_files import file_digest
from branches.frontend import FBANK_MEAN, FBANK_STD, fbank
from branches.training.batches import Batch
from branches.training.finetuning import FineTuning
from scoring.errors import InputError
from tests.branches.beats.test_beats import FIXTURES, MODELS, changed, noise, released
from tests.branches.training.test_finetuning import CLASSES, spec_with

MEAN, STD = 11.5, 4.0


def checkpoint(folder, form, model="pretrained", **more):
    """A file of a form with keys beside the network, and the table of relative positions in the first layer alone."""
    content = torch.load(FIXTURES / f"{model}.pt", weights_only=True)
    cfg = content["cfg"] | {"decoder_layers": 1} | ({"fbank_mean": MEAN, "fbank_std": STD} if "norm" in form else {})
    state = {key: value.clone() for key, value in content["model"].items() if ".1.self_attn.relative" not in key}
    state |= {"patch_embedding_pad.weight": torch.ones(1, 1, 16, 16), "raw2fbank_pad.weight": torch.ones(1, 1, 400)}
    state = {("encoder." if "nested" in form else "") + key: value for key, value in (state | more).items()}
    state |= {"predictor.mask_token": torch.ones(1), "decoder.layers.0.fc1.weight": torch.ones(2, 2)}
    if "safetensors" in form:
        save_file(state, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps({"beats_config": cfg} if model == "prenorm" else cfg))
        return folder / "model.safetensors"
    torch.save({"cfg": cfg, "model": state, "token_list": ["0"]}, folder / "epoch_latest.pt")
    return folder / "epoch_latest.pt"


@pytest.mark.parametrize("form", ["flat", "nested", "own norm", "nested, own norm, safetensors"])
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_each_form_holds_the_same_network_and_its_own_normalisation_which_is_saved_with_it(form, model, tmp_path):
    path, features = checkpoint(tmp_path, form, model), fbank(noise(2, 16_000))
    normalised = (features * 2 * FBANK_STD + FBANK_MEAN - MEAN) / (2 * STD) if "norm" in form else features
    expected = released(model).encode(normalised)[0]
    assert ("norm" in form) == bool((expected - released(model).encode(features)[0]).abs().max() > 1e-4)
    save_beats(load_beats(path), tmp_path / "saved.pt")
    for file in (path, tmp_path / "saved.pt"):
        torch.testing.assert_close(load_beats(file).encode(features)[0], expected, atol=1e-4, rtol=0)
        assert count_parameters(file) == sum(p.numel() for p in released(model).parameters())


def test_what_is_masked_in_training_is_at_the_mean_of_the_checkpoints_normalisation(tmp_path):
    backbone = {"path": str(checkpoint(tmp_path, "own norm"))}
    masks, seen = {"time_mask": 40, "frequency_mask": 100}, []
    for settings in ({"augmentation": masks}, {"augmentation": {}, "masked_prediction": {}}):
        parts = FineTuning(spec_with(backbone=backbone, strategy="lora", **settings), CLASSES)
        parts.model.beats.patch_embedding.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        parts(Batch([*noise(8, 8_000).numpy()], np.arange(8) % 3))
        assert 0.1 < (seen.pop().abs() < 1e-5).float().mean() < 0.95


def test_what_is_wrong_with_a_file_is_named(tmp_path):
    more = torch.ones(1)
    for make, message in (
        (
            lambda: changed(lambda c: c.pop("cfg") and c.update(c.pop("model")), tmp_path),
            r"it holds tensors alone, .* OpenBEATs-Base-i3",
        ),
        (lambda: checkpoint(tmp_path, "flat", **{"encoder.extra": more}), r"unexpected key encoder\.extra$"),
        (lambda: checkpoint(tmp_path, "nested", **{"layer_weights": more}), "unexpected key layer_weights$"),
        (lambda: changed(lambda c: c["model"].update({"predictor.mask_token": more}), tmp_path), "key predictor.mask"),
        (lambda: changed(lambda c: c["cfg"].update(fbank_std=0.0), tmp_path), r"fbank_std is 0\.0: Input should be gr"),
    ):
        path = make()
        with pytest.raises(InputError, match=rf"^{path}[^\n]*{message}"):
            load_beats(path)
    path, config = checkpoint(tmp_path, "safetensors"), tmp_path / "config.json"
    digest = file_digest(path)  # of both
    for damaged, content, message in (
        (config, b"{", "config.json is not JSON"),
        (path, path.read_bytes()[:999], "not a file of safetensors"),
        (config, None, "tensors alone, and .*config.json, which describes the network, is not there"),
    ):
        damaged.write_bytes(content) if content else damaged.unlink()
        assert file_digest(path) != digest
        with pytest.raises(InputError, match=rf"^{path} is not a BEATs checkpoint: [^\n]*{message}"):
            load_beats(path)
        path = checkpoint(tmp_path, "safetensors")
