"""Trains `small`, the network that comes with tutti, from sounds that this file makes up.

    python -m branches.pretraining small.pt --seed 0

Every machine is drawn at random: a few parts (pulses, noise, tones) with spectra, modulations and rates of their own,
in a room and a din. An alteration changes one thing of one part, or adds or takes one away. The network learns to tell
machines and alterations apart by clips of 1.28 s, and what was under masked patches (docs/small.md). No recording and
no clip of `branches.data.synthetic` takes part.
"""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn, irfft, next_fast_len, rfft, rfftfreq
from torch import Tensor, nn
from torch.nn import functional as F

from branches.beats import BEATs, BEATsConfig, save_beats
from branches.beats.checkpoint import random_beats
from branches.frames import FRAME_LENGTH, FRAME_SHIFT, PATCH_SIZE, SAMPLE_RATE
from branches.frontend import fbank
from branches.pooling import N_BANDS, build_pooling
from branches.spec import BandStatisticsSpec, MaskedPredictionSpec, TrainingSpec
from branches.training.loop import Progress, run
from branches.training.masked_prediction import MaskedPrediction

log = logging.getLogger(__name__)

SMALL = BEATsConfig(
    input_patch_size=PATCH_SIZE,
    embed_dim=128,
    encoder_layers=3,
    encoder_embed_dim=128,
    encoder_ffn_embed_dim=512,
    encoder_attention_heads=4,
    conv_pos=16,
    conv_pos_groups=8,
    num_buckets=32,
    max_distance=128,
    conv_bias=True,
    deep_norm=True,
    dropout=0.0,
    attention_dropout=0.0,
)
FRAMES = 256  # of a clip
CROP = 128  # of what is trained on
VARIANTS = 4  # of a machine: as it should be, and altered in three ways
TAKES = 2  # clips of each variant
BATCH = 12  # machines, all their clips
TEMPERATURE = 0.1

SAMPLES = FRAME_LENGTH + (FRAMES - 1) * FRAME_SHIFT
_ROOM = 3200  # samples of a room response
_LENGTH = next_fast_len(SAMPLES + _ROOM, real=True)
_HZ = rfftfreq(_LENGTH, 1 / SAMPLE_RATE)
_OCTAVES = np.log2(np.maximum(_HZ, 50) / 50) / math.log2(160)  # 0 at 50 Hz, 1 at 8 kHz
_SECONDS = np.arange(_LENGTH) / SAMPLE_RATE


@dataclass(frozen=True)
class Part:
    """One source of sound.

    kind: pulses (strikes if slow, a tone with overtones if fast), noise, or tones that are no overtones
    level: in dB
    rate: Hz, of pulses or of the lowest tone
    spectrum: in dB, the weights of cosines over the octaves from 50 Hz to 8 kHz
    modes: (n, 3) resonances: Hz, bandwidth in Hz, gain
    depth, beat: of the modulation: share, and Hz
    jitter, missing: of pulses: relative deviation of an interval, share that fails
    """

    kind: str
    level: float
    rate: float
    spectrum: NDArray[np.float64]
    modes: NDArray[np.float64]
    depth: float
    beat: float
    jitter: float
    missing: float


@dataclass(frozen=True)
class Machine:
    """Parts in a room, heard through a din of some spectrum (dB) and level (dB above the machine).

    unsteadiness: how much speed, levels and din differ from take to take; 1 is a lot
    """

    parts: tuple[Part, ...]
    room: NDArray[np.complex128]
    din: NDArray[np.float64]
    din_level: float
    level: float
    unsteadiness: float


def _log_uniform(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _curve(rng: np.random.Generator, deviation: float, orders: int = 8) -> NDArray[np.float64]:
    return rng.normal(size=orders) * deviation / np.sqrt(1 + np.arange(orders) / 2)


def draw_part(rng: np.random.Generator) -> Part:
    """A part at random."""
    kind = str(rng.choice(["pulses", "pulses", "noise", "noise", "tones"]))
    fast = rng.uniform() < 0.5
    n_modes = int(rng.integers(0, 5))
    modes = [
        (_log_uniform(rng, 150, 7000), _log_uniform(rng, 15, 300), _log_uniform(rng, 1, 15)) for _ in range(n_modes)
    ]
    return Part(
        kind,
        level=float(rng.uniform(-12, 0)),
        rate=_log_uniform(rng, 20, 500) if kind == "tones" or fast else _log_uniform(rng, 1.5, 30),
        spectrum=_curve(rng, 9),
        modes=np.array(modes).reshape(-1, 3),
        depth=float(rng.uniform(0, 0.9) ** 2),
        beat=_log_uniform(rng, 0.7, 40),
        jitter=float(rng.choice([0.002, 0.01, 0.05, 0.4])) * (0.05 if fast else 1.0),
        missing=0.0,
    )


def draw_machine(rng: np.random.Generator) -> Machine:
    """A machine at random."""
    time = np.arange(_ROOM) / SAMPLE_RATE
    response = rng.normal(size=_ROOM) * np.exp(-6.9 * time / rng.uniform(0.08, 0.5))
    response *= rng.uniform(0.05, 0.5) / np.sqrt((response**2).sum())
    response[0] += 1
    parts = tuple(draw_part(rng) for _ in range(int(rng.integers(1, 5))))
    return Machine(
        parts,
        room=rfft(response, _LENGTH),
        din=_curve(rng, 5),
        din_level=float(rng.uniform(-25, 0)),
        level=float(rng.uniform(-38, -16)),
        unsteadiness=_log_uniform(rng, 0.1, 1),
    )


def alter(machine: Machine, rng: np.random.Generator) -> Machine:
    """The machine with one thing about it changed, from faint to plain."""
    i = int(rng.integers(len(machine.parts)))
    part, strength = machine.parts[i], rng.uniform(0.15, 1)
    sign = float(rng.choice([-1, 1]))
    resonance = (_log_uniform(rng, 150, 7000), _log_uniform(rng, 15, 300), 20 * strength)
    changes: dict[str, dict[str, Any]] = {
        "level": {"level": part.level + sign * 12 * strength},
        "pitch": {"rate": part.rate * 1.3 ** (sign * strength)},
        "spectrum": {"spectrum": part.spectrum + _curve(rng, 7 * strength)},
        "bright": {"spectrum": part.spectrum + np.eye(8)[1] * sign * 10 * strength},
        "resonance": {"modes": np.vstack([part.modes, resonance])},
        "tune": {"modes": part.modes * [1.25 ** (sign * strength), 1, 1]},
        "depth": {"depth": min(0.95, part.depth + 0.8 * strength)},
        "beat": {"beat": part.beat * 3 ** (sign * strength), "depth": max(part.depth, 0.4)},
        "jitter": {"jitter": part.jitter + (0.6 if part.rate < 30 else 0.08) * strength},
        "missing": {"missing": 0.6 * strength},
    }
    pulses, slow = part.kind == "pulses", part.rate < 30
    useful = ["add", "add", "level", "spectrum", "bright", "resonance", "depth", "beat"]
    useful += ["remove"] if len(machine.parts) > 1 else []
    useful += ["pitch"] if part.kind != "noise" else []
    useful += ["tune"] if len(part.modes) else []
    useful += ["jitter"] if pulses else []
    useful += ["missing"] if pulses and slow else []
    name = str(rng.choice(useful))
    parts = list(machine.parts)
    if name == "remove":
        del parts[i]
    elif name == "add":
        parts.append(replace(draw_part(rng), level=float(max(p.level for p in parts) + rng.uniform(-22, -4))))
    else:
        parts[i] = replace(part, **changes[name])
    return replace(machine, parts=tuple(parts))


def _wander(rng: np.random.Generator, hz: float) -> NDArray[np.float64]:
    """A curve of about unit deviation that changes `hz` times a second."""
    knots = int(_SECONDS[-1] * hz) + 2
    return np.interp(_SECONDS * hz, np.arange(knots + 1), rng.normal(size=knots + 1))


def _pulses(part: Part, speed: float, rng: np.random.Generator) -> NDArray[np.float64]:
    track = np.zeros(_LENGTH)
    rate = part.rate * speed
    n = int(_SECONDS[-1] * rate * 1.5) + 3
    intervals = np.maximum(1 + part.jitter * rng.normal(size=n), 0.05) / rate
    at = (rng.uniform(0, 1 / rate) + np.cumsum(intervals) - intervals[0]) * SAMPLE_RATE
    at = at[at < _LENGTH - 1]
    force = rng.uniform(0.8, 1.2, at.size) * (rng.uniform(size=at.size) >= part.missing)
    whole = at.astype(np.int64)
    np.add.at(track, whole, force * (1 - at + whole))  # between samples, lest rounding sound like noise
    np.add.at(track, whole + 1, force * (at - whole))
    return track * np.sqrt(SAMPLE_RATE / max(rate, 8.0))


def _tones(part: Part, speed: float, rng: np.random.Generator) -> NDArray[np.float64]:
    angle = 2 * np.pi * np.cumsum(part.rate * speed * (1 + 0.003 * _wander(rng, 2))) / SAMPLE_RATE
    ratios = (1.0, 2.76, 5.4, 8.93, 13.3)  # of a free bar
    return np.asarray(sum(np.cos(r * angle + rng.uniform(0, 6.3)) for r in ratios)) * 3


def _sound(part: Part, speed: float, unsteadiness: float, rng: np.random.Generator) -> NDArray[np.complex128]:
    """Spectrum (bins,) of one part."""
    match part.kind:
        case "noise":
            excitation = rng.normal(size=_LENGTH)
        case "pulses":
            excitation = _pulses(part, speed, rng)
        case _:
            excitation = _tones(part, speed, rng)
    swell = 1 + part.depth * np.cos(2 * np.pi * part.beat * speed * _SECONDS + rng.uniform(0, 6.3))
    excitation *= swell * np.exp(0.08 * _wander(rng, 3))
    response = np.ones(len(_HZ), complex)
    for hz, width, gain in part.modes:
        response += gain / (1 + 2j * (_HZ - hz) / width)
    level = part.level + 0.7 * unsteadiness * rng.normal()
    return rfft(excitation) * response * _magnitude(part.spectrum + _curve(rng, 0.5 * unsteadiness), level)


def _magnitude(spectrum: NDArray[np.float64], level: float) -> NDArray[np.float64]:
    decibels = level + np.cos(np.pi * np.outer(np.arange(len(spectrum)), _OCTAVES)).T @ spectrum
    return np.asarray(10 ** (decibels / 20))


def _sum(spectra: Iterable[NDArray[np.complex128]]) -> NDArray[np.complex128]:
    return np.sum(list(spectra), axis=0)


def _power(spectrum: NDArray[np.complex128]) -> float:
    return float((np.abs(spectrum) ** 2).sum()) + 1e-9


def record(machine: Machine, loudness: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """A clip (SAMPLES,) of a machine, `loudness` being the power of the machine as it should be."""
    loose = machine.unsteadiness
    speed = 1 + loose * rng.uniform(-0.015, 0.015)
    sound = _sum(_sound(part, speed, loose, rng) for part in machine.parts)
    din = rfft(rng.normal(size=_LENGTH)) * _magnitude(machine.din + _curve(rng, 1.5 * loose), 0.0)
    ratio = 10 ** ((machine.din_level + loose * rng.uniform(-4, 4)) / 10)
    heard = sound * machine.room + din * math.sqrt(ratio * loudness / _power(din))
    # Of a real signal's spectrum: Σ|x|² = 2 Σ|X|² / n.
    gain = 10 ** ((machine.level + loose * rng.uniform(-1.5, 1.5)) / 20) * _LENGTH / math.sqrt(2 * loudness)
    waveform = irfft(heard, _LENGTH)[_ROOM:][:SAMPLES] * gain + 3e-5 * rng.normal(size=SAMPLES)
    return waveform.clip(-1, 1).astype(np.float32)


def clips_of_machine(seed: int, number: int) -> NDArray[np.float32]:
    """Clips (VARIANTS, TAKES, SAMPLES) of a machine and its alterations; they depend on seed and number alone."""
    rng = np.random.default_rng([seed, number])
    machine = draw_machine(rng)
    loudness = float(np.mean([_power(_sum(_sound(p, 1.0, 0.0, rng) for p in machine.parts)) for _ in range(3)]))
    variants = [machine, *(alter(machine, rng) for _ in range(VARIANTS - 1))]
    return np.stack([[record(variant, loudness, rng) for _ in range(TAKES)] for variant in variants])


def features_of_machines(seed: int, machines: int) -> Tensor:
    """Log-mels (machines, VARIANTS, TAKES, FRAMES, 128) in half precision."""
    features = torch.empty(machines, VARIANTS, TAKES, FRAMES, 128, dtype=torch.float16)
    for number in range(machines):
        clips = torch.from_numpy(clips_of_machine(seed, number))
        features[number] = fbank(clips.flatten(0, 1)).view(VARIANTS, TAKES, FRAMES, 128)
        if number % 100 == 0:
            log.info("machine %d of %d", number, machines)
    return features


def untrained(seed: int) -> BEATs:
    """`small` before training: random, but for patch filters that are a cosine transform, with biases.

    A patch's level is most of its variance, and leaks into every random filter. Here it is one filter's alone; the
    biases, which alternate in sign, keep the layer norm that follows from dividing it out.
    """
    model = random_beats(SMALL, seed)
    filters = [(f, t) for f in range(16) for t in range(8)]
    with torch.no_grad():
        for i, (f, t) in enumerate(filters):
            order = np.zeros((PATCH_SIZE, PATCH_SIZE))
            order[t, f] = 1.0 if f or t else 0.25
            model.patch_embedding.weight[i, 0] = torch.from_numpy(dctn(order, type=3, norm="ortho"))
        model.patch_embedding.bias.copy_(3.0 * (-1.0) ** torch.arange(len(filters)))  # type: ignore[union-attr]
    return model


class Head(nn.Module):
    """Mean and deviation over time of each band → two directions: projected, and standardised as they are.

    The first is free to choose what tells sounds apart. The second makes the patches themselves, which are what is left
    when the head is dropped, lie near each other where sounds are alike.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pooling = build_pooling(BandStatisticsSpec(), width)
        size = N_BANDS * self.pooling.output_dim
        self.views = nn.ModuleList([nn.Linear(size, 128), nn.BatchNorm1d(size, affine=False)])

    def forward(self, patches: Tensor) -> list[Tensor]:
        """Unit vectors (B, 128) and (B, 16 D) of patches (B, P, D)."""
        statistics = self.pooling(patches, None).flatten(1)
        return [F.normalize(view(statistics)) for view in self.views]


def contrast(directions: Tensor, classes: Tensor) -> Tensor:
    """Supervised contrastive loss of unit vectors (B, E) and classes (B,): Khosla et al. 2020, arXiv:2004.11362."""
    itself = torch.eye(len(classes), dtype=torch.bool)
    logits = (directions @ directions.T / TEMPERATURE).masked_fill(itself, -1e9)
    same = (classes[:, None] == classes) & ~itself
    return -(logits.log_softmax(1) * same).sum(1).div(same.sum(1)).mean()


def train(features: Tensor, training: TrainingSpec, seed: int) -> BEATs:
    """The trained network. A batch is a crop of each clip of `batch_size` machines; every fourth is masked, too."""
    torch.manual_seed(seed)
    model, head = untrained(seed), Head(SMALL.encoder_embed_dim)
    masking = MaskedPrediction(MaskedPredictionSpec(mask=0.3, weight=0.1), SMALL.encoder_embed_dim)
    modules = nn.ModuleDict({"backbone": model, "head": head, "masking": masking}).train()
    decayed = [p for p in modules.parameters() if p.dim() > 1]
    others = [p for p in modules.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": training.weight_decay}, {"params": others, "weight_decay": 0.0}]
    progress = Progress({"all": modules}, torch.optim.AdamW(groups, lr=training.learning_rate), "")

    def loss_of(step: int) -> Tensor:
        rng = torch.Generator().manual_seed(seed * 1_000_003 + step)
        machines = torch.randperm(len(features), generator=rng)[: training.batch_size]
        clips = features[machines].flatten(0, 2)
        starts = torch.randint(FRAMES - CROP + 1, (len(clips),), generator=rng).tolist()
        crops = torch.stack([clip[first : first + CROP] for clip, first in zip(clips, starts, strict=True)]).float()
        classes = torch.arange(len(machines) * VARIANTS).repeat_interleave(TAKES)
        apart = [contrast(directions, classes) for directions in head(model.encode(crops)[0])]
        masked, counted = masking.mask(crops[::4])
        return torch.stack(apart).sum() + masking(model.encode(masked)[0], masking.labels(crops[::4]), counted)

    run(progress, training, loss_of, None, lambda step, loss: log.info("step %d: loss %.3f", step, loss), math.inf)
    return model.eval()


def save_small(model: BEATs, path: Path) -> None:
    """Write a network in half precision, as a released checkpoint."""
    save_beats(model.half(), path)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train the network `small` from generated sounds.")
    parser.add_argument("checkpoint", type=Path, help="where to write it")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--machines", type=int, default=300)
    parser.add_argument("--steps", type=int, default=350)
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(1)  # else sums are taken in another order on another machine
    training = TrainingSpec(
        steps=options.steps, batch_size=BATCH, learning_rate=1e-3, warmup_steps=50, weight_decay=0.05, average=0.99
    )
    save_small(train(features_of_machines(options.seed, options.machines), training, options.seed), options.checkpoint)


if __name__ == "__main__":
    main()
