"""Training of the generator, once per data set."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from branches.audio.cache import AudioCache
from branches.generator.conditions import Condition, Vocabulary, commonest, rare_conditions
from branches.generator.flow import flow_loss
from branches.generator.network import VelocityNetwork
from branches.generator.real_clips import RealClips, WindowStatistics, real_clips, window_statistics
from branches.generator.scale import BandScale
from branches.spec import Channel, GeneratorSpec
from branches.training.batches import batch_rows
from branches.training.loop import Progress, Report, resume, run
from branches.transfer import to_device
from scoring.errors import InputError


@dataclass(frozen=True)
class Generator:
    """A network, and the clips it was trained on.

    vocabulary: numbers of the words of conditions
    clips: real training clips, the references of samples, and their `statistics`
    scale: level and variation of each band under a condition
    """

    spec: GeneratorSpec
    network: VelocityNetwork
    vocabulary: Vocabulary
    clips: RealClips
    statistics: WindowStatistics
    scale: BandScale

    @property
    def device(self) -> torch.device:
        """Where the network computes."""
        return next(self.network.parameters()).device

    def words(self, conditions: list[Condition]) -> Tensor:
        """Numbers (B, K) of conditions (B,), on the network's device."""
        return to_device(torch.from_numpy(self.vocabulary.encode(conditions)), self.device)

    def scale_of(self, conditions: list[Condition]) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation (B, 1, 128) of the bands under conditions (B,), on the network's device."""
        mean, std = self.scale.of(conditions)
        return to_device(mean, self.device), to_device(std, self.device)


def train_generator(
    spec: GeneratorSpec,
    audio: AudioCache,
    index: pa.Table,
    channel: Channel,
    checkpoint: Path | None = None,
    report: Report = lambda step, loss: None,
    checkpoint_seconds: float = 600.0,
    device: str = "cpu",
) -> Generator:
    """Train a generator on the training rows of `index`; the same settings and clips give the same weights on a CPU.

    Parameters
    ----------
    spec: network, training, and what will be sampled
    audio: decoded clips, in the order of `index`
    channel: what the generator hears, and its samples are of
    checkpoint, report, checkpoint_seconds, device: as in `branches.training.finetuning.train`; the loss is 1 for a
        network that knows no more than each band's mean and variance

    Sets the seed of torch's global generators.

    Raises
    ------
    InputError
        If no condition is rare, so that there is nothing to generate, or if the training diverges.
    """
    clips = real_clips(audio, index, channel, spec.crop_seconds)
    if not rare_conditions(clips.conditions, spec.fill):
        raise InputError(
            f"no condition has less than {spec.fill:g} of the clips of its machine's commonest one: there is "
            "nothing to generate; raise `fill`, or train without generated clips"
        )
    statistics = window_statistics(clips, device)
    vocabulary = Vocabulary(clips.conditions)

    signature = hashlib.sha256(repr((clips.conditions, clips.frames)).encode()).hexdigest()

    def start() -> Progress:
        torch.manual_seed(spec.seed)
        network = VelocityNetwork(spec, len(vocabulary)).to(device)
        optimizer = torch.optim.AdamW(
            network.parameters(), lr=spec.learning_rate, weight_decay=spec.weight_decay, fused=device == "cuda"
        )
        return Progress(network, optimizer, signature)

    progress = resume(start, checkpoint)
    network = progress.module
    assert isinstance(network, VelocityNetwork)
    generator = Generator(spec, network, vocabulary, clips, statistics, BandScale(clips, statistics, vocabulary))
    drawn = balanced(clips.conditions)
    run(progress, spec, lambda step: _loss(generator, drawn, step), checkpoint, report, checkpoint_seconds)
    network.eval()
    return generator


def balanced(conditions: list[Condition]) -> NDArray[np.int64]:
    """The clips of a pass, rare ones several times: the root of how much rarer their condition is, rounded.

    Equal shares would show each of ten clips a hundred times as often as one of a thousand, and be learnt by heart.
    """
    counts = Counter(conditions)
    largest = commonest(counts)
    times = [round((largest[c.group] / counts[c]) ** 0.5) for c in conditions]
    return np.repeat(np.arange(len(conditions)), times)


def _loss(generator: Generator, drawn: NDArray[np.int64], step: int) -> Tensor:
    """The loss of one step, all its randomness from the seed and the step's number."""
    spec, clips, device = generator.spec, generator.clips, generator.device
    rng = np.random.default_rng([spec.seed, step])
    chosen = drawn[batch_rows(len(drawn), spec.batch_size, step, spec.seed)]
    conditions = [clips.conditions[i] for i in chosen]
    mean, std = generator.scale_of(conditions)
    data = (clips.crops(chosen, rng.integers(clips.last_start(chosen) + 1), device) - mean) / std
    kept = to_device(torch.from_numpy(rng.random((len(chosen), 1)) >= spec.condition_dropout), device)
    # Samples begin at 1 - strength; what comes before is never asked for.
    t = to_device(torch.from_numpy(1 - spec.strength * rng.random(len(chosen), np.float32)), device)
    source = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
    noise = torch.randn(data.shape, generator=source, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return flow_loss(generator.network, data, noise, t, generator.words(conditions) * kept)
