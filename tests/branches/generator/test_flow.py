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
    for _ in range(120):
        data, words = two_states(16)
        loss = flow_loss(network, data, torch.randn_like(data), torch.rand(16), words)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.7
    data, words = two_states(16)
    x = sample(network, data, torch.randn_like(data), words.flip(1), strength=1.0, steps=8)
    assert (x.mean(1) * data.mean(1)).mean(1).max() < -0.6  # each becomes the other


@pytest.mark.parametrize("strength", [0.01, 0.3, 1.0])
@torch.no_grad()
def test_an_untrained_network_is_the_best_linear_guess(strength):
    """Its loss is 1, its flow gives each point the variance of data: a little noise leaves the reference as it is."""
    torch.manual_seed(0)
    network, words, t = VelocityNetwork(16, 1, 1), torch.ones(8, 1), torch.full((8,), 1 - strength)
    reference, noise = torch.randn(2, 8, 16, 128)
    assert flow_loss(network, reference, noise, t, words) == pytest.approx(1, abs=0.05)
    mixture, deviation = (1 - strength) * reference + strength * noise, (strength**2 + (1 - strength) ** 2) ** 0.5
    moved = sample(network, reference, noise, words, strength, steps=20)
    torch.testing.assert_close(moved, mixture / deviation, atol=0.01, rtol=0)
    guess = network(mixture, t, words)
    network.leave.bias.fill_(1.0)
    torch.testing.assert_close(network(mixture, t, words) - guess, torch.full_like(guess, 1 / deviation))
