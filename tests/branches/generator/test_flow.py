"""The velocity network and the flow, without clips."""

import pytest
import torch

from branches.generator.flow import VelocityNetwork, flow_loss, sample


def two_states(n):
    """Log-mels of two states, one louder in the lower bands and one in the upper: (n, 16, 128), words (n, 2)."""
    state = torch.arange(n) % 2
    spectrum = torch.where((torch.arange(128) < 64) == (state[:, None] == 0), 1.0, -1.0)
    return spectrum[:, None] + 0.2 * torch.randn(n, 16, 128), torch.eye(2)[state]


def test_the_flow_leads_to_the_wanted_state():
    torch.manual_seed(0)
    network = VelocityNetwork(32, 1, 2)
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(150):
        data, words = two_states(16)
        loss = flow_loss(network, data, torch.randn_like(data), torch.rand(16), words)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noise = torch.randn(16, 16, 128)
    for words, sign in ((torch.eye(2)[[0] * 16], 1), (torch.eye(2)[[1] * 16], -1)):
        x = sample(network, noise, noise, words, strength=1.0, steps=8)
        assert sign * float((x[..., :64].mean() - x[..., 64:].mean()) / 2) > 0.8


def test_an_untrained_network_gives_noise_of_unit_variance_and_keeps_the_reference_at_little_strength():
    torch.manual_seed(0)
    network, words = VelocityNetwork(16, 1, 1), torch.ones(8, 1)
    reference, noise = torch.full((8, 16, 128), 3.0), torch.randn(8, 16, 128)
    free = sample(network, reference, noise, words, strength=1.0, steps=20)
    assert free.std() == pytest.approx(1, abs=0.05)
    assert free.mean() == pytest.approx(0, abs=0.05)
    held = sample(network, reference, noise, words, strength=0.01, steps=2)
    assert (held - reference).abs().max() < 0.1
