"""A packaged ensemble against its branches one by one, as ratios measured in one run.

    pytest -m benchmark -s tests/benchmarks/test_ensemble.py

One by one means: each branch loaded by itself and given the clips by itself, without scores being made of
what it says. The rounds of what is compared alternate, and the fastest of each counts.
"""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from branches.audio.cache import in_memory
from branches.beats import BEATsConfig, save_beats
from branches.beats.checkpoint import random_beats
from branches.data.synthetic import SyntheticClip, SyntheticSize, render, write_dataset
from branches.model import BranchModel, features_of, load_branch
from branches.spec import BUILT_IN
from orchestrator.model.ensemble import Ensemble
from orchestrator.model.export import export_system
from orchestrator.model.manifest import Member
from tests.commands import tutti

pytestmark = pytest.mark.benchmark

BASE = BEATsConfig(
    input_patch_size=16, embed_dim=512, encoder_layers=12, encoder_embed_dim=768, encoder_ffn_embed_dim=3072,
    encoder_attention_heads=12, conv_pos=128, conv_pos_groups=16, num_buckets=320, max_distance=800, deep_norm=True,
    dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
# Two LoRA branches, and four frozen ones that share a pass through the backbone.
LARGE = """
name: large
branch:
  backbone: {path: base.pt}
  objective: softmax
  embedding_dim: 64
  training: {steps: 1, batch_size: 2, crop_seconds: 0.5}
subsystems:
  lora:
    arcface: {branch: {objective: arcface, strategy: lora}}
    softmax: {branch: {strategy: lora}}
  frozen:
    mean: {branch: {strategy: frozen, pooling: mean}}
    statistics: {branch: {strategy: frozen, pooling: band_statistics}}
    bands: {branch: {strategy: frozen, pooling: band_mean}}
    layers: {branch: {strategy: frozen, pooling: mean, backbone: {path: base.pt, layers: [4, 8]}}}
"""


def exported(folder: Path, system: str) -> Path:
    """A system that is trained on next to nothing and exported; with one labelled machine no branch is left out."""
    write_dataset(folder / "data", SyntheticSize(6, 3, 2, 1.0), machines=["rotor", "pump"])
    for i, path in enumerate(sorted((folder / "data" / "pump" / "test").iterdir())):
        path.rename(path.with_name(f"section_00_{i:04d}.wav"))
    run = tutti("run", system, "--data", folder / "data", "--out", folder / "out", timeout=600)
    assert run.returncode == 0, run.stderr
    return export_system(folder / "out", None, folder / "model")


Embedder = Callable[[list[NDArray[np.float32]]], None]


def one_by_one(ensemble: Ensemble) -> list[Callable[[], Embedder]]:
    """What loads the network of each member of a package."""
    return [lambda member=member: loaded(ensemble, member) for member in ensemble.manifest.members]


def loaded(ensemble: Ensemble, member: Member) -> Embedder:
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


def fastest(*calls: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each call's fastest round."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = time.perf_counter()
            call()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


@pytest.mark.parametrize("name", ["demo", "large"])
def test_together_against_one_by_one(name, tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        system = name
        if name == "large":
            save_beats(random_beats(BASE, seed=0), tmp_path / "base.pt")
            system = str(tmp_path / "large.yaml")
            Path(system).write_text(LARGE.replace("base.pt", str(tmp_path / "base.pt")))
        measure(exported(tmp_path, system), rounds=4 if name == "demo" else 2, many=4)
    finally:
        torch.set_num_threads(threads)


def measure(model: Path, rounds: int, many: int) -> None:
    """Print what the package weighs, and what a clip of 10 s takes."""
    ensemble = Ensemble(model)
    loads = one_by_one(ensemble)
    members = [load() for load in loads]
    clips = [render(SyntheticClip("rotor", "test", "source", "normal", i), 10.0) for i in range(many)]
    ensemble.score("rotor", clips[:1])
    calls = {
        "load, then one clip": (
            lambda: Ensemble(model).score("rotor", clips[:1]),
            lambda: [load()(clips[:1]) for load in loads],
        ),
        "one clip": (lambda: ensemble.score("rotor", clips[:1]), lambda: [run(clips[:1]) for run in members]),
        f"{many} clips": (lambda: ensemble.score("rotor", clips), lambda: [run(clips) for run in members]),
    }
    size = sum(path.stat().st_size for path in ensemble.folder.rglob("*") if path.is_file())
    print(f"\n{len(members)} score tables, {len(ensemble.manifest.branches)} branches, {size / 1e6:.1f} MB")
    for name, (together, alone) in calls.items():
        ours, theirs = fastest(together, alone, rounds=rounds)
        print(f"{name}: {ours * 1e3:.0f} ms together, {theirs * 1e3:.0f} ms one by one: {theirs / ours:.2f}×")
