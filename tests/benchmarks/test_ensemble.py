"""A packaged ensemble against its branches one by one, as ratios measured in one run (deployment.md).

One by one means: each branch loaded by itself and given the clips by itself, without scores being made of what it says.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from branches.audio.cache import in_memory
from branches.data.synthetic import SyntheticClip, render
from branches.model import BranchModel, features_of, load_branch
from branches.spec import BUILT_IN
from orchestrator.model.ensemble import Ensemble
from orchestrator.model.manifest import Member
from tests.benchmarks.measured import fastest

pytestmark = pytest.mark.benchmark


def loaded(ensemble: Ensemble, member: Member) -> Callable[[list[NDArray[np.float32]]], None]:
    """A member that embeds clips (samples, channels) of one length, and hears nothing of the others."""
    spec = ensemble.manifest.branches[member.branch_id]
    place = spec.backbone.path if spec.backbone.path in BUILT_IN else str(ensemble.folder / spec.backbone.path)
    if spec.is_frozen:
        backbone = spec.backbone.model_copy(update={"path": place})
        network = BranchModel(spec.model_copy(update={"backbone": backbone}))
    else:
        network = load_branch(ensemble.folder / member.branch_file, place)

    @torch.inference_mode()
    def embed(clips: list[NDArray[np.float32]]) -> None:
        audio = in_memory(clips)
        waveforms = [audio.waveform(i, spec.channel) for i in range(len(audio))]
        network.embeddings(*features_of(waveforms, torch.device("cpu")), [member.embedding])

    return embed


def test_together_against_one_by_one(run):
    package, ensemble = run.model, Ensemble(run.model)
    members = ensemble.manifest.members
    alone = [loaded(ensemble, member) for member in members]
    clips = [render(SyntheticClip("rotor", "test", "source", "normal", i), 10.0) for i in range(4)]
    calls = {
        "load, then one clip": (
            lambda: Ensemble(package).score("rotor", clips[:1]),
            lambda: [loaded(ensemble, member)(clips[:1]) for member in members],
        ),
        "one clip": (lambda: ensemble.score("rotor", clips[:1]), lambda: [embed(clips[:1]) for embed in alone]),
        "4 clips": (lambda: ensemble.score("rotor", clips), lambda: [embed(clips) for embed in alone]),
    }
    size = sum(path.stat().st_size for path in package.rglob("*") if path.is_file())
    print(f"\n{len(members)} score tables, {len(ensemble.manifest.branches)} branches, {size / 1e6:.0f} MB")
    for name, (together, one_by_one) in calls.items():
        ours, theirs = fastest(together, one_by_one, rounds=3)
        print(f"{name}: {ours * 1e3:.0f} ms together, {theirs * 1e3:.0f} ms one by one: {theirs / ours:.2f}×")
        assert theirs > ours
