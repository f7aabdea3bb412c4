import pytest
import torch

from branches.beats import load_beats, save_beats
from branches.beats.config import LORA_TARGETS, LoRAConfig
from branches.beats.lora import add_lora, lora_parameters, merge_lora
from scoring.errors import InputError

LORA = LoRAConfig(rank=4, alpha=8.0, targets=LORA_TARGETS)
WAVEFORMS = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture
def adapted():
    torch.manual_seed(0)
    model = load_beats("tiny")
    add_lora(model, LORA)
    with torch.no_grad():
        for parameter in lora_parameters(model):
            parameter.normal_(0, 0.1)
    return model


def test_merged_adapters_give_the_same(adapted):
    before = adapted(WAVEFORMS)[0]
    assert not torch.allclose(before, load_beats("tiny")(WAVEFORMS)[0], atol=1e-2)
    merge_lora(adapted)
    torch.testing.assert_close(adapted(WAVEFORMS)[0], before, atol=1e-4, rtol=1e-4)
    assert adapted.config == load_beats("tiny").config
    assert set(adapted.state_dict()) == set(load_beats("tiny").state_dict())
    merge_lora(adapted)  # nothing left to do


@pytest.mark.parametrize("base", [None, ("tiny", None)])
def test_adapters_are_saved_and_loaded(adapted, tmp_path, base):
    save_beats(adapted, tmp_path / "adapted.pt", base=base)
    loaded = load_beats(tmp_path / "adapted.pt")
    assert loaded.config.lora == LORA
    assert torch.equal(loaded(WAVEFORMS)[0], adapted(WAVEFORMS)[0])


def test_beside_its_base_only_the_adapters_are_kept(adapted, tmp_path):
    save_beats(load_beats("tiny"), tmp_path / "base.pt")
    save_beats(adapted, tmp_path / "adapted.pt", base=("base.pt", None))
    kept = torch.load(tmp_path / "adapted.pt", weights_only=True)["model"]
    assert all(".lora_" in key for key in kept)
    assert torch.equal(load_beats(tmp_path / "adapted.pt")(WAVEFORMS)[0], adapted(WAVEFORMS)[0])
    (tmp_path / "base.pt").unlink()
    with pytest.raises(InputError, match=r"adapted\.pt: .*base\.pt: no such file"):
        load_beats(tmp_path / "adapted.pt")


def test_adapters_are_not_put_on_adapters(adapted):
    with pytest.raises(InputError, match="adapters already"):
        add_lora(adapted, LORA)


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"rank": 0, "alpha": 1.0, "targets": ["fc1"]}, r"lora\.rank must be positive"),
        ({"rank": 1, "alpha": 1.0, "targets": ["fc3"]}, r"lora\.targets fc3; known: q_proj"),
        ({"rank": 1, "alpha": 1.0, "targets": []}, r"lora\.targets are empty"),
        ({"rank": 1}, "lora must have rank, alpha and targets"),
        ({"rank": 1, "alpha": 1.0, "targets": [3]}, r"lora\.targets must be names"),
    ],
)
def test_a_wrong_description_of_adapters_is_named(adapted, tmp_path, lora, message):
    path = tmp_path / "adapted.pt"
    save_beats(adapted, path)
    content = torch.load(path, weights_only=True)
    content["cfg"]["lora"] = lora
    torch.save(content, path)
    with pytest.raises(InputError, match=message):
        load_beats(path)
