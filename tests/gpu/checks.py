"""What a GPU must do as a CPU does, and how fast it is.

    python -m tests.gpu.checks                  # on one card, a few minutes
    python -m tests.gpu.checks --device cpu --steps 4

Needs torch, numpy, scipy, scikit-learn, pyarrow, soundfile and pydantic; neither ray nor mlflow nor `orchestrator`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from branches.audio.cache import in_memory
from branches.beats import BEATsConfig, save_beats
from branches.beats.attention import gated_attention
from branches.beats.checkpoint import random_beats
from branches.beats.encoder import apply_layer, recomputed
from branches.frontend import fbank, full_precision
from branches.model import BranchModel, features_of, load_branch, save_branch
from branches.spec import BranchSpec, PatchesSpec
from branches.training.batches import make_batch
from branches.training.finetuning import FineTuning, train
from branches.training.loop import _descend
from branches.training.training_set import TrainingClips
from tests.embedded import embedded

GIB = 1 << 30
BASE = BEATsConfig(
    input_patch_size=16, embed_dim=512, encoder_layers=12, encoder_embed_dim=768, encoder_ffn_embed_dim=3072,
    encoder_attention_heads=12, conv_pos=128, conv_pos_groups=16, num_buckets=320, max_distance=800, deep_norm=True,
    dropout=0.0, attention_dropout=0.0,
)  # fmt: skip
AUGMENTED = {"time_mask": 10, "frequency_mask": 16, "mixup": {}}
TRAININGS = [
    {"strategy": "full", "objective": "arcface", "augmentation": AUGMENTED, "masked_prediction": {}},
    {"strategy": {"name": "lora", "rank": 4}, "objective": "subcenter_arcface", "pooling": "band_mean"},
    {"strategy": {"name": "partial", "layers": 1}, "objective": "subcluster_adacos", "augmentation": AUGMENTED},
    {"strategy": "head", "objective": "subcluster_adacos", "training": {"average": 0.9, "accumulation": 2}},
    {"strategy": {"name": "full", "layer_decay": 0.7}, "objective": "softmax", "pooling": "mean"},
]


class Stopped(Exception):
    """Raised in the middle of a training."""


def clips(n: int, seconds: float, seed: int = 0) -> TrainingClips:
    """Noise of four classes, each with a tone of its own."""
    rng, time_axis = np.random.default_rng(seed), np.arange(round(16_000 * seconds)) / 16_000
    labels = np.arange(n) % 4
    sounds = [0.05 * (np.sin(2000 * (c + 1) * time_axis) + rng.normal(size=len(time_axis))) for c in labels]
    audio = in_memory([sound.astype(np.float32)[:, None] for sound in sounds])
    return TrainingClips(audio, np.arange(n), np.full(n, "m", object), labels, np.zeros(4, bool))


def spec_of(steps: int, training: dict[str, object] | None = None, **settings: object) -> BranchSpec:
    """Of a tiny network that learns quickly."""
    common = {"steps": steps, "batch_size": 8, "crop_seconds": 1.0, "learning_rate": 2e-3, "warmup_steps": 3}
    return BranchSpec.model_validate({"embedding_dim": 16, **settings, "training": {**common, **(training or {})}})


def agree(name: str, ours: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    """Whether two results are as near as stated: norm of the difference over the norm."""
    ours, expected = ours.detach().double().cpu(), expected.detach().double().cpu()
    error = float((ours - expected).norm() / expected.norm())
    print(f"  {name}: relative error {error:.1e}, allowed {bound:.0e}")
    assert error < bound, name


def check_log_mels(device: str, steps: int) -> None:
    """Log-mels of the GPU are the CPU's."""
    waveforms = 0.1 * torch.randn(4, 160_000, generator=torch.Generator().manual_seed(0))
    agree("log-mels", fbank(waveforms.to(device)), fbank(waveforms), 1e-5)


def check_attention(device: str, steps: int) -> None:
    """Attention with gates and padding, and its gradients, are the CPU's."""
    torch.manual_seed(0)
    heads, patches = 4, 96
    inputs = [torch.randn(2, heads, patches, 16) for _ in range(3)]
    inputs += [torch.rand(2, heads, patches, 1), torch.randn(heads, patches, patches)]
    padding = torch.zeros(2, 1, 1, patches)
    padding[1, ..., -20:] = torch.finfo(torch.float32).min

    def outputs(where: str) -> list[torch.Tensor]:
        placed = [x.detach().clone().to(where).requires_grad_() for x in inputs]
        out = gated_attention(*placed, padding.to(where))
        return [out, *torch.autograd.grad(out.square().sum(), placed)]

    with full_precision():
        names = ("attention", "of q", "of k", "of v", "of the gate", "of the position bias")
        for name, ours, expected in zip(names, outputs(device), outputs("cpu"), strict=True):
            agree(name, ours, expected, 1e-4)


def check_embeddings(device: str, steps: int) -> None:
    """Embeddings in float32 and bfloat16, of clips of several lengths, are the CPU's; so is a saved branch's."""
    audio = in_memory([c.audio.waveform(0, "near")[:, None] for c in (clips(1, s) for s in (1.0, 1.5, 1.0, 2.0))])
    for precision, bound in (("float32", 1e-4), ("bfloat16", 5e-2)):
        torch.manual_seed(0)
        model = BranchModel(spec_of(1, backbone={"precision": precision}), train_in_bfloat16=True).eval()
        exact = BranchModel(spec_of(1)).eval()
        exact.load_state_dict(model.state_dict())
        expected = torch.from_numpy(embedded(exact, audio)[0])
        with tempfile.TemporaryDirectory() as folder:
            save_branch(model.to(device), Path(folder) / "branch.pt")
            served = load_branch(Path(folder) / "branch.pt")
        agree(f"embeddings in {precision}", torch.from_numpy(embedded(model, audio)[0]), expected, bound)
        agree(f"{precision}, served on the CPU", torch.from_numpy(embedded(served, audio)[0]), expected, bound)


def check_trainings(device: str, steps: int) -> None:
    """Losses are finite and fall, with the host waiting for no step; a resumed training ends as an undisturbed one."""
    sounds = clips(32, 1.2)
    for settings in TRAININGS:
        spec = spec_of(steps, **settings)
        losses: list[float] = []
        whole = train(spec, sounds, None, lambda step, loss, losses=losses: losses.append(loss), device=device)
        assert np.isfinite(losses).all()
        assert steps < 50 or np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5]), losses

        def stop(step: int, loss: float) -> None:
            if step >= steps // 2:
                raise Stopped

        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "branch.pt"
            try:
                train(spec, sounds, checkpoint, stop, 0.0, device)
            except Stopped:
                resumed = train(spec, sounds, checkpoint, device=device)
        weights = [torch.cat([p.flatten() for p in m.parameters() if p.requires_grad]) for m in (resumed, whole)]
        agree(f"{spec.strategy.name} {spec.objective.name}, resumed", *weights, 1e-9 if device == "cpu" else 1e-2)
        if device == "cuda":
            _check_no_waiting(spec, sounds)


def _check_no_waiting(spec: BranchSpec, sounds: TrainingClips) -> None:
    """A step in which reading from the GPU is an error."""
    parts = FineTuning(spec, sounds, "cuda").train()
    progress = parts.progress()
    for forbidden in (False, True):  # the first step puts tables on the GPU
        batch = make_batch(spec, sounds, 0)
        torch.cuda.set_sync_debug_mode("error" if forbidden else "default")
        try:
            _descend(progress, spec.training, lambda number, batch=batch: parts(batch))
        finally:
            torch.cuda.set_sync_debug_mode("default")


def check_memory_comes_back(device: str, steps: int) -> None:
    """Between two branches of one process nothing stays on the GPU but tables and the workspaces of cuBLAS."""
    if device == "cpu":
        return
    sounds, left = clips(16, 1.2), []
    for _ in range(2):
        train(spec_of(steps), sounds, device=device)
        torch.cuda.empty_cache()
        left.append(torch.cuda.memory_allocated())
    print(f"  left after one branch and after two: {left} bytes")
    assert left[1] <= left[0]


def check_speed(device: str, steps: int) -> None:
    """Images (clips of 10 s) a second, the share of what products reach, and memory."""
    if device == "cpu":
        return
    limits = {dtype: _products_per_second(dtype) for dtype in (torch.bfloat16, torch.float32)}
    rates = ", ".join(f"{str(dtype)[6:]} {limit / 1e12:.0f} TFLOP/s" for dtype, limit in limits.items())
    print(f"  {torch.cuda.get_device_name()}: products of {rates} (no TF32)")
    print("  | | batch | clips/s | MFU | peak GiB |\n  |---|---|---|---|---|")
    sounds = clips(64, 10.0)
    with base_checkpoint() as path:
        for strategy in ("frozen", "frozen bfloat16", "lora", "full"):
            for batch in (8, 16, 32):
                _measure(strategy, _of_base(path, strategy, batch), sounds, limits)
        _measure("full recomputed", _of_base(path, "full", 32), sounds, limits)
        for strategy in ("lora compiled", "full compiled"):
            _measure(strategy, _of_base(path, strategy.split()[0], 32), sounds, limits)


@contextmanager
def base_checkpoint() -> Iterator[str]:
    """A random network of the released size."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "base.pt")
        save_beats(random_beats(BASE, seed=0), path)
        yield path


def _of_base(path: str, strategy: str, batch: int, **settings: object) -> BranchSpec:
    training = {"batch_size": batch, "crop_seconds": 10.0}
    if strategy.startswith("frozen"):  # embedding alone
        precision = "bfloat16" if "bfloat16" in strategy else "float32"
        return spec_of(1, training, backbone={"path": path, "precision": precision}, strategy="head", **settings)
    return spec_of(1, training, backbone=path, strategy=strategy, **settings)


def _measure(strategy: str, spec: BranchSpec, sounds: TrainingClips, limits: dict[torch.dtype, float]) -> None:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    parts, batch = FineTuning(spec, sounds, "cuda"), make_batch(spec, sounds, 0)
    progress, n, encoder = parts.progress(), spec.training.batch_size, parts.model.backbone.encoder
    if strategy.endswith("recomputed"):
        encoder.apply_layer = recomputed(encoder.apply_layer)
    if strategy.endswith("compiled"):
        encoder.apply_layer = torch.compile(apply_layer)

    def step() -> None:
        if strategy.startswith("frozen"):
            with torch.inference_mode():
                parts.model.eval()(*features_of(batch.waveforms, parts.device))
        else:
            parts.train()
            _descend(progress, spec.training, lambda number: parts(batch))

    started = time.perf_counter()
    step()
    torch.cuda.synchronize()
    first = time.perf_counter() - started
    seconds = _seconds(step, 10)
    kind = strategy.split()[0]
    passes = {"frozen": 2, "lora": 4, "full": 6}[kind]
    flop = passes * n * 496 * sum(p.numel() for p in parts.model.backbone.layers.parameters())
    limit = limits[torch.float32 if strategy == "frozen" else torch.bfloat16]
    peak = (torch.cuda.max_memory_allocated() - before) / GIB
    note = f" (first step {first:.0f} s)" if strategy.endswith("compiled") else ""
    print(f"  | {strategy}{note} | {n} | {n / seconds:.0f} | {flop / seconds / limit:.0%} | {peak:.2f} |")


def check_what_is_not_the_encoder(device: str, steps: int) -> None:
    """Shares of a training step: waveforms on one thread of the host, log-mels, labels of masked patches, the rest."""
    if device == "cuda":
        print_shares_of_a_step("cuda", 32, 10)


def print_shares_of_a_step(device: str, batch_size: int, times: int) -> float:
    """What takes how much of a LoRA step at base size with all augmentation; the share that is not the encoder."""
    sounds = clips(64, 10.0)
    settings = {"augmentation": AUGMENTED, "masked_prediction": {}, "objective": "arcface"}
    with base_checkpoint() as path:
        spec = _of_base(path, "lora", batch_size, **settings)
        parts = FineTuning(spec, sounds, device).train()
    started = time.perf_counter()
    for number in range(4):
        batch = make_batch(spec, sounds, number)
    host = (time.perf_counter() - started) / 4
    progress, masked = parts.progress(), parts.masked
    features, _ = features_of(batch.waveforms, parts.device)

    def labels() -> None:
        assert masked is not None
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            masked.labels(features)

    def encode() -> None:
        parts.model.encode(features, None)[0].sum().backward()  # type: ignore[no-untyped-call]

    step = _seconds(lambda: _descend(progress, spec.training, lambda number: parts(batch)), times)
    timed = {"encoder": encode, "log-mels": lambda: features_of(batch.waveforms, parts.device), "labels": labels}
    shares = {name: _seconds(work, times) / step for name, work in timed.items()}
    print(
        f"  a step of {batch_size} clips: {1e3 * step:.0f} ms; " + ", ".join(f"{k} {v:.1%}" for k, v in shares.items())
    )
    print(f"  its batch takes the host {1e3 * host:.0f} ms of one thread, {host / step:.1%} of the step")
    return 1 - shares["encoder"]


def check_one_pass(device: str, steps: int) -> None:
    """Clips a second from decoded audio to embeddings in a file, as of a frozen branch."""
    if device == "cpu":
        return
    sounds = clips(256, 10.0).audio
    with base_checkpoint() as path:
        for precision in ("float32", "bfloat16"):
            spec = BranchSpec.model_validate({"strategy": "frozen", "backbone": {"path": path, "precision": precision}})
            model = BranchModel(spec).to(device)
            embedded(model, sounds, embeddings=[PatchesSpec()], batch_size=64)
            started = time.perf_counter()
            embedded(model, sounds, embeddings=[PatchesSpec()], batch_size=64)
            print(f"  {precision}: {256 / (time.perf_counter() - started):.0f} clips of 10 s a second")


def _products_per_second(dtype: torch.dtype) -> float:
    a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    with full_precision():
        return 2 * 8192**3 / _seconds(lambda: a @ a, 20)


def _seconds(work: Callable[[], object], times: int) -> float:
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for _ in range(min(times, 3)):
        work()
    wait()
    started = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - started) / times


CHECKS = [
    check_log_mels,
    check_attention,
    check_embeddings,
    check_trainings,
    check_memory_comes_back,
    check_speed,
    check_what_is_not_the_encoder,
    check_one_pass,
]


def main() -> int:
    """The command line: all checks, whatever fails; 1 if any did."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--steps", type=int, default=50, help="of each training")
    chosen, failed = parser.parse_args(), []
    for check in CHECKS:
        print(check.__doc__, flush=True)
        started = time.perf_counter()
        try:
            check(chosen.device, chosen.steps)
        except Exception:  # what else holds is worth knowing
            traceback.print_exc()
            failed.append(check.__name__)
        print(f"  ({time.perf_counter() - started:.0f} s)", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
