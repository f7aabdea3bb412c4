import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from branches.frontend import fbank
from branches.spec import AugmentationSpec, MixupSpec
from branches.training.augment import add_noise, mix, mixing, spec_augment


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@given(st.integers(0, 127), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_mask_is_one_stretch_no_wider_than_asked(longest, in_time):
    masks = {"time_mask": longest} if in_time else {"frequency_mask": longest}
    for clip in spec_augment(torch.ones(4, 20, 128), AugmentationSpec(**masks)):
        stretch = (clip == 0).all(dim=1 if in_time else 0)
        assert int(stretch.sum()) <= min(longest, len(stretch))
        assert (stretch.int().diff() == 1).sum() + stretch[0].int() <= 1
        assert int((clip == 0).sum()) == int(stretch.sum()) * (128 if in_time else 20)


def test_masks_reach_their_full_width_and_every_place():
    masked = spec_augment(torch.ones(400, 30, 128), AugmentationSpec(time_mask=10))[:, :, 0] == 0
    assert set(masked.sum(dim=1).tolist()) == set(range(11))
    assert masked.any(dim=0).all()


@given(st.floats(-10, 30))
@settings(max_examples=20, deadline=None)
def test_noise_is_added_at_the_ratio_asked_for(snr_db):
    waveform, noise = np.random.default_rng(0).normal(size=(2, 4000)).astype(np.float32) * [[0.1], [3.0]]
    added = add_noise(waveform, noise, snr_db) - waveform
    assert 10 * np.log10(np.square(waveform).mean() / np.square(added).mean()) == pytest.approx(snr_db, abs=0.01)
    assert np.array_equal(add_noise(waveform, 0 * noise, snr_db), waveform)


def test_a_mixture_of_features_is_that_of_the_sounds():
    """White noises are incoherent: the features of their sum are those of the sum of their powers."""
    a, b = torch.randn(2, 1, 32_000) * torch.tensor([0.1, 0.03])[:, None, None]
    heard, features = fbank(0.6**0.5 * a + 0.4**0.5 * b), torch.cat([fbank(a), fbank(b)])
    mixed = mix(features, torch.tensor([1, 0]), torch.tensor([0.6, 1.0]))
    assert (mixed[0] - heard[0]).mean().abs() < 0.01
    assert torch.equal(mixed[1], features[1])


def test_shares_are_uniform_and_partners_others():
    partner, share = mixing(1000, MixupSpec(probability=0.3))
    assert sorted(partner.tolist()) == list(range(1000))
    assert (partner == torch.arange(1000)).sum() < 10
    mixed = share[share < 1]
    assert len(mixed) / 1000 == pytest.approx(0.3, abs=0.05)
    assert torch.quantile(mixed, torch.tensor([0.25, 0.75])).tolist() == pytest.approx([0.25, 0.75], abs=0.1)
    assert [t.tolist() for t in mixing(3, None)] == [[0, 1, 2], [1.0] * 3]
