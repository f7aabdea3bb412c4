"""What a GPU must do as a CPU does, and how fast it is.

    python -m tests.gpu.checks        # on one card, a few minutes; --device cpu --steps 4 on none

Needs torch, numpy, scipy, scikit-learn, pyarrow, soundfile and pydantic; neither ray nor mlflow nor `orchestrator`.
"""

import argparse
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch

from branches.audio.cache import in_memory
from branches.beats import BEATsConfig, save_beats
from branches.beats.attention import gated_attention
from branches.beats.checkpoint import random_beats
from branches.beats.encoder import apply_layer, recomputed
from branches.frontend import fbank, full_precision
from branches.model import BranchModel, embed, features_of, load_branch, save_branch
from branches.spec import PROJECTION, BranchSpec, PatchesSpec
from branches.training.batches import Batch, make_batch
from branches.training.finetuning import FineTuning, train
from branches.training.loop import _descend
from branches.training.training_set import TrainingClips

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


def clips(n: int, seconds: float) -> TrainingClips:
    """Noise of four classes, each with a tone of its own."""
    rng, time_axis = np.random.default_rng(0), np.arange(round(16_000 * seconds)) / 16_000
    labels = np.arange(n) % 4
    sounds = [0.05 * (np.sin(2000 * (c + 1) * time_axis) + rng.normal(size=len(time_axis))) for c in labels]
    audio = in_memory([sound.astype(np.float32)[:, None] for sound in sounds])
    return TrainingClips(audio, np.arange(n), np.full(n, "m", object), labels, np.zeros(4, bool))


def embedded(model, audio, channel="near", embeddings=(PROJECTION,), batch_size=32):
    """Each of the embeddings of all clips, from one pass."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.npy" for i in range(len(embeddings))]
        embed(model, audio, channel, embeddings, files, batch_size)
        return [np.load(file) for file in files]


def spec_of(steps: int, training=None, **settings) -> BranchSpec:
    common = {"steps": steps, "batch_size": 8, "crop_seconds": 1.0, "learning_rate": 2e-3, "warmup_steps": 3}
    return BranchSpec.model_validate({"embedding_dim": 16, **settings, "training": {**common, **(training or {})}})


def agree(name: str, ours: torch.Tensor, expected: torch.Tensor, bound: float) -> None:
    """Whether two results are as near as stated: norm of the difference over the norm."""
    ours, expected = ours.detach().double().cpu(), expected.detach().double().cpu()
    error = float((ours - expected).norm() / expected.norm())
    print(f"  {name}: relative error {error:.1e}, allowed {bound:.0e}")
    assert error < bound, name


def check_attention(device="cuda", steps=50) -> None:
    """Log-mels, and attention with gates and padding and its gradients, are the CPU's."""
    torch.manual_seed(0)
    waveforms, heads, patches = 0.1 * torch.randn(4, 160_000), 4, 96
    agree("log-mels", fbank(waveforms.to(device)), fbank(waveforms), 1e-5)
    inputs = [torch.randn(2, heads, patches, 16) for _ in range(3)]
    inputs += [torch.rand(2, heads, patches, 1), torch.randn(heads, patches, patches)]
    padding = torch.zeros(2, 1, 1, patches)
    padding[1, ..., -20:] = torch.finfo(torch.float32).min

    def outputs(where: str) -> list[torch.Tensor]:
        placed = [x.detach().clone().to(where).requires_grad_() for x in inputs]
        out = gated_attention(*placed, padding.to(where))
        return [out, *torch.autograd.grad(out.square().sum(), placed)]

    with full_precision():
        for i, (ours, expected) in enumerate(zip(outputs(device), outputs("cpu"), strict=True)):
            agree(f"gradient of input {i}" if i else "attention", ours, expected, 1e-4)


def check_embeddings(device="cuda", steps=50) -> None:
    """Embeddings in float32 and bfloat16, of clips of several lengths, are the CPU's; so is a saved branch's."""
    audio = in_memory([clips(1, seconds).audio.waveform(0, "near")[:, None] for seconds in (1.0, 1.5, 1.0, 2.0)])
    for precision, bound in (("float32", 1e-4), ("bfloat16", 5e-2)):
        torch.manual_seed(0)
        model = BranchModel(spec_of(1, backbone={"precision": precision}), train_in_bfloat16=True).eval()
        exact = BranchModel(spec_of(1)).eval()
        exact.load_state_dict(model.state_dict())
        expected = torch.from_numpy(embedded(exact, audio)[0])
        with tempfile.TemporaryDirectory() as folder:
            save_branch(model.to(device), Path(folder) / "branch.pt")
            served = load_branch(Path(folder) / "branch.pt")
        for name, of in ((f"embeddings in {precision}", model), (f"{precision}, served on the CPU", served)):
            agree(name, torch.from_numpy(embedded(of, audio)[0]), expected, bound)


def check_trainings(device="cuda", steps=50) -> None:
    """Losses are finite and fall, with the host waiting for no step; a resumed training ends as an undisturbed one."""
    sounds = clips(32, 1.2)

    def stop(step: int, loss: float) -> None:
        if step >= steps // 2:
            raise KeyboardInterrupt

    for settings in TRAININGS:
        spec, losses = spec_of(steps, **settings), []
        whole = train(spec, sounds, None, lambda step, loss, losses=losses: losses.append(loss), device=device)
        assert np.isfinite(losses).all()
        assert steps < 50 or np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5]), losses
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "branch.pt"
            with suppress(KeyboardInterrupt):
                train(spec, sounds, checkpoint, stop, 0.0, device)
            resumed = train(spec, sounds, checkpoint, device=device)
        weights = [torch.cat([p.flatten() for p in m.parameters() if p.requires_grad]) for m in (resumed, whole)]
        agree(f"{spec.strategy.name} {spec.objective.name}, resumed", *weights, 1e-9 if device == "cpu" else 1e-2)
        if device == "cuda":
            step = step_of(FineTuning(spec, sounds, "cuda").train(), make_batch(spec, sounds, 0))
            step()  # puts tables on the GPU
            torch.cuda.set_sync_debug_mode("error")
            try:
                step()
            finally:
                torch.cuda.set_sync_debug_mode("default")


def measure_memory_that_stays() -> None:
    """Between two branches of one process nothing stays on the GPU but tables and the workspaces of cuBLAS."""
    left = []
    for _ in range(2):
        train(spec_of(50), clips(16, 1.2), device="cuda")
        torch.cuda.empty_cache()
        left.append(torch.cuda.memory_allocated())
    print(f"  left after one branch and after two: {left} bytes")
    assert left[1] <= left[0]


def measure_speed() -> None:
    """Images (clips of 10 s) a second, the share of what products reach, and memory."""
    limits = {}
    for dtype in (torch.bfloat16, torch.float32):
        a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
        with full_precision():
            limits[dtype] = 2 * 8192**3 / seconds_of(lambda a=a: a @ a, 20)
    rates = ", ".join(f"{str(dtype)[6:]} {limit / 1e12:.0f} TFLOP/s" for dtype, limit in limits.items())
    print(f"  {torch.cuda.get_device_name()}: products of {rates} (no TF32)")
    print("  | | batch | clips/s | MFU | peak GiB |\n  |---|---|---|---|---|")
    rows = [(kind, n) for kind in ("frozen", "frozen bfloat16", "lora", "full") for n in (8, 16, 32)]
    with base_checkpoint() as path:
        for kind, n in [*rows, ("full recomputed", 32), ("lora compiled", 32), ("full compiled", 32)]:
            print(f"  | {kind} | {n} | {' | '.join(row_of(path, kind, n, limits))} |")


def row_of(path: str, kind: str, n: int, limits: dict[torch.dtype, float]) -> list[str]:
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, sounds = torch.cuda.memory_allocated(), clips(64, 10.0)
    strategy, _, how = kind.partition(" ")
    spec = spec_of_base(path, strategy, n, precision="bfloat16" if how == "bfloat16" else "float32")
    parts, batch = FineTuning(spec, sounds, "cuda").train(), make_batch(spec, sounds, 0)
    encoder = parts.model.backbone.encoder
    changed = {"recomputed": recomputed, "compiled": torch.compile}.get(how, lambda layer: layer)
    encoder.apply_layer = changed(apply_layer)
    embed = torch.inference_mode()(lambda: parts.model.eval()(*features_of(batch.waveforms, parts.device)))
    seconds = seconds_of(embed if strategy == "frozen" else step_of(parts, batch), 10)
    passes = {"frozen": 2, "lora": 4, "full": 6}[strategy]
    flop = passes * n * 496 * sum(p.numel() for p in parts.model.backbone.layers.parameters())
    limit = limits[torch.float32 if kind == "frozen" else torch.bfloat16]
    peak = (torch.cuda.max_memory_allocated() - before) / 2**30
    return [f"{n / seconds:.0f}", f"{flop / seconds / limit:.0%}", f"{peak:.2f}"]


@contextmanager
def base_checkpoint():
    with tempfile.TemporaryDirectory() as folder:
        save_beats(random_beats(BASE, seed=0), f"{folder}/base.pt")
        yield f"{folder}/base.pt"


def spec_of_base(path: str, strategy: str, batch: int, precision: str = "float32", **settings) -> BranchSpec:
    """Of the network at a path; of a frozen one as if its head were trained."""
    settings |= {"backbone": {"path": path, "precision": precision}, "strategy": strategy.replace("frozen", "head")}
    return spec_of(1, {"batch_size": batch, "crop_seconds": 10.0}, **settings)


def measure_what_is_not_the_encoder(device: str = "cuda", batch_size: int = 32, times: int = 10) -> float:
    """Shares of a training step: waveforms on one thread of the host, log-mels, labels of masked patches, the rest."""
    sounds = clips(64, 10.0)
    settings = {"augmentation": AUGMENTED, "masked_prediction": {}, "objective": "arcface"}
    with base_checkpoint() as path:
        spec = spec_of_base(path, "lora", batch_size, **settings)
        parts = FineTuning(spec, sounds, device).train()
    batch = make_batch(spec, sounds, 0)
    features, _ = features_of(batch.waveforms, parts.device)
    works = (
        lambda: parts.model.encode(features, None)[0].sum().backward(),
        lambda: features_of(batch.waveforms, parts.device),
        torch.autocast(device, torch.bfloat16, enabled=device == "cuda")(lambda: parts.masked.labels(features)),
    )
    step, host = seconds_of(step_of(parts, batch), times), seconds_of(lambda: make_batch(spec, sounds, 0), 4)
    encoder, log_mels, labels = (seconds_of(work, times) / step for work in works)
    print(f"  a step of {batch_size} clips: {1e3 * step:.0f} ms, of which encoder {encoder:.1%}, "
          f"log-mels {log_mels:.1%}, labels {labels:.1%}")  # fmt: skip
    print(f"  its batch takes the host {1e3 * host:.0f} ms of one thread, {host / step:.1%} of the step")
    return 1 - encoder


def measure_one_pass() -> None:
    """Clips a second from decoded audio to embeddings in a file, as of a frozen branch."""
    sounds = clips(256, 10.0).audio
    with base_checkpoint() as path:
        for precision in ("float32", "bfloat16"):
            spec = BranchSpec.model_validate({"strategy": "frozen", "backbone": {"path": path, "precision": precision}})
            model = BranchModel(spec).to("cuda")
            seconds = seconds_of(lambda m=model: embedded(m, sounds, embeddings=[PatchesSpec()], batch_size=64), 1)
            print(f"  {precision}: {256 / seconds:.0f} clips of 10 s a second")


def step_of(parts: FineTuning, batch: Batch) -> Callable[[], object]:
    progress = parts.progress()
    return lambda: _descend(progress, parts.spec.training, lambda number: parts(batch))


def seconds_of(work: Callable[[], object], times: int) -> float:
    """Mean of so many calls, after as many that warm up, at most three."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for number in range(-min(times, 3), times):
        if number == 0:
            wait()
            started = time.perf_counter()
        work()
    wait()
    return (time.perf_counter() - started) / times


CHECKS = [check_attention, check_embeddings, check_trainings]
MEASURES = [measure_memory_that_stays, measure_speed, measure_what_is_not_the_encoder, measure_one_pass]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--steps", type=int, default=50, help="of each training")
    chosen, failed = parser.parse_args(), []
    for check in CHECKS + (MEASURES if chosen.device == "cuda" else []):
        print(check.__doc__, flush=True)
        try:
            check(**vars(chosen)) if check in CHECKS else check()
        except Exception:  # what else holds is worth knowing
            traceback.print_exc()
            failed.append(check.__name__)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
