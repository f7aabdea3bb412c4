"""Each frozen step of the ladder against its published definition, written down once more in plain numpy."""

import numpy as np
import pytest

from branches.pooling import Pooling
from orchestrator.plan import make_plan
from orchestrator.system import load_system
from scoring.banks import ReferenceBank


def pooled(patches, gamma):
    """Patches (clips, moments, 8, D) → (clips, 8, D), weights ∝ (1 + r)^γ."""
    result = np.empty((len(patches), 8, patches.shape[-1]))
    for clip, moments in enumerate(patches):
        for band in range(8):
            x = moments[:, band]
            distance = np.linalg.norm(x - x.mean(axis=0), axis=1)
            weights = (1 + distance / distance.max()) ** gamma
            result[clip, band] = (weights[:, None] * x).sum(axis=0) / weights.sum()
    return result


def scored(bank, queries):
    """Mean over bands of the smallest cosine distance less the fitted share of the density around the reference."""
    scores = []
    for band in range(8):
        a, q = (x[:, band] / np.linalg.norm(x[:, band], axis=1, keepdims=True) for x in (bank, queries))
        among, to = 1 - a @ a.T, 1 - q @ a.T
        np.fill_diagonal(among, np.inf)
        density = np.sort(among, axis=1)[:, :4].mean(axis=1)
        u, v = among.min(axis=1), density[among.argmin(axis=1)]
        weight = np.cov(u, v, bias=True)[0, 1] / v.var()
        scores.append((to - weight * density).min(axis=1))
    return np.mean(scores, axis=0)


STEPS = {
    "near/band_mean": 0,
    "near/deviation": 4,
    "near/sharp": 8,
    "near/lora": 4,
    "cancelled/deviation": 4,
    "cancelled/lora": 4,
}


@pytest.mark.parametrize("step", STEPS)
def test_each_step_is_the_published_one(step):
    import torch

    subsystem, _, name = step.partition("/")
    configuration = load_system("ladder").subsystems[subsystem][name]
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(60, 6, 8, 12)) + rng.normal(size=(1, 1, 8, 12))
    embeddings = Pooling(configuration.embedding.pooling, 12)(torch.from_numpy(patches).flatten(1, 2), None).numpy()
    expected = pooled(patches, STEPS[step])
    np.testing.assert_allclose(embeddings, expected, rtol=1e-9, atol=1e-11)
    domain = np.array(["source"] * 45 + ["target"] * 5, object)
    found = ReferenceBank(configuration.detector, embeddings[:50], domain).scores(embeddings[50:])
    plain = scored(expected[:50], expected[50:])
    slope, offset = np.polyfit(plain, found, 1)  # scores are in standard deviations of those of the normals
    assert slope > 0
    np.testing.assert_allclose(found, slope * plain + offset, atol=1e-6)


def test_frozen_steps_of_a_channel_are_one_branch():
    assert len(make_plan([load_system("ladder")], None).branches) == 4
