import pytest
import torch

from branches.beats import load_beats, save_beats
from branches.beats.lora import add_lora, merge_lora
from branches.spec import LoraSpec

LORA = LoraSpec(rank=4, alpha=8.0, targets=("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"))
WAVEFORMS = torch.randn(2, 8000, generator=torch.Generator().manual_seed(0)) * 0.1


@pytest.fixture
def adapted():
    torch.manual_seed(0)
    model = load_beats("tiny")
    with torch.no_grad():
        for parameter in add_lora(model, LORA):
            parameter.normal_(0, 0.1)
    return model


def test_merged_adapters_give_the_same(adapted):
    before, layer = adapted(WAVEFORMS)[0], adapted.layers[1].fc1
    expected = layer.weight + 8 / 4 * layer.lora_b @ layer.lora_a
    merge_lora(adapted)
    torch.testing.assert_close(adapted.layers[1].fc1.weight, expected)
    torch.testing.assert_close(adapted(WAVEFORMS)[0], before, atol=1e-4, rtol=1e-4)
    assert set(adapted.state_dict()) == set(load_beats("tiny").state_dict())


def test_a_saved_checkpoint_has_the_adapters_in_its_weights(adapted, tmp_path):
    save_beats(adapted, tmp_path / "adapted.pt")
    torch.testing.assert_close(load_beats(tmp_path / "adapted.pt")(WAVEFORMS), adapted(WAVEFORMS), atol=1e-4, rtol=1e-4)
    assert any("lora" in name for name in adapted.state_dict())  # which goes on as it was
