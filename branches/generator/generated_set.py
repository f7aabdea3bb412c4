"""The generated set: a network learns from a data set's training clips, its samples are checked, and all are kept.

A set is a folder that branches share:

- `features.npy`: (n, frames, 128) float16 normalised log-mels as `branches.frontend.fbank` gives
- `rows.parquet`: for each sample machine, section, domain and attributes, the training clip it was made from
  (`reference`), and the columns of `check_samples`
- `check.json`: the settings, and for each operating state the number of clips, of samples and of each verdict
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from torch import Tensor

from branches.frames import N_MELS
from branches.generator.flow import VelocityNetwork, flow_loss, sample
from branches.generator.states import OperatingState, RealClips, balanced, band_levels, rare_states
from branches.spec import GeneratorSpec
from branches.training.batches import batch_rows
from branches.training.loop import Progress, Report, resume, run
from branches.transfer import to_device
from scoring.atomic import atomic_folder
from scoring.errors import InputError

VERDICTS = ("accepted", "copy", "far")
LEAST_ACCEPTED = 0.1
"""Share of accepted samples under which a generator has failed, and those that passed did so by chance."""
_FEW = 3  # fewer clips of a state do not tell how far apart its clips usually are


def train_generator(
    spec: GeneratorSpec,
    clips: RealClips,
    checkpoint: Path | None = None,
    report: Report = lambda step, loss: None,
    checkpoint_seconds: float = 600.0,
) -> VelocityNetwork:
    """Train on the device of the clips; the same settings and clips give the same weights on a CPU.

    checkpoint, report, checkpoint_seconds: as in `branches.training.finetuning.train`; the loss is 1 for a network that
        knows no more than each band's mean and variance

    Sets the seed of torch's global generators. Raises InputError if no state is rare, or if the training diverges.
    """
    if not rare_states(clips.states, spec.fill):
        raise InputError(
            f"no operating state has less than {spec.fill:g} of the clips of its machine's commonest one: there is "
            "nothing to generate; raise `fill`, or train without generated clips"
        )
    device, training = clips.device, spec.training

    def start() -> Progress:
        torch.manual_seed(spec.seed)
        network = VelocityNetwork(spec.width, spec.depth, clips.words.shape[1]).to(device)
        weights, decay = network.parameters(), training.weight_decay
        optimizer = torch.optim.AdamW(weights, weight_decay=decay, fused=device.type == "cuda")
        signature = hashlib.sha256(repr((clips.states, clips.frames)).encode()).hexdigest()
        return Progress(network, optimizer, signature)

    progress = resume(start, checkpoint)
    network = progress.module
    assert isinstance(network, VelocityNetwork)
    loss_of = partial(_loss, spec, network, clips, balanced(clips.states))
    run(progress, training, loss_of, checkpoint, report, checkpoint_seconds)
    return network.eval()


def _loss(
    spec: GeneratorSpec, network: VelocityNetwork, clips: RealClips, drawn: NDArray[np.int64], step: int
) -> Tensor:
    """The loss of one step, all its randomness from the seed and the step's number."""
    rng, device = np.random.default_rng([spec.seed, step]), clips.device
    chosen = drawn[batch_rows(len(drawn), spec.batch_size, step, spec.seed)]
    data, (words, _, _) = clips.crops(chosen, rng), clips.conditioning(chosen)
    # Samples begin at 1 - strength; what comes before is never asked for.
    t = to_device(torch.from_numpy(1 - spec.strength * rng.random(len(chosen), np.float32)), device)
    source = torch.Generator(device).manual_seed(int(rng.integers(2**63)))
    noise = torch.randn(data.shape, generator=source, device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
        return flow_loss(network, data, noise, t, words)


def generate(spec: GeneratorSpec, network: VelocityNetwork, clips: RealClips, folder: Path) -> None:
    """Sample what rare states lack, check it, and write the set; the same network gives the same set on a CPU.

    The folder takes the place of what was there; a crash leaves no half-written one.
    """
    like, references = choose_references(clips.states, spec)
    features, levels = _samples(spec, network, clips, like, references)
    columns = check_samples(spec, clips, like, levels) | {"reference": clips.index["clip"].take(references)}
    rows = clips.index.select(["machine", "section", "domain", "attributes"]).take(like)
    for name, column in columns.items():
        rows = rows.append_column(name, pa.array(column))
    verdicts = {
        str(clips.states[i]): {"clips": clips.states.count(clips.states[i]), "samples": int((like == i).sum())}
        | {verdict: int((columns["verdict"][like == i] == verdict).sum()) for verdict in VERDICTS}
        for i in np.unique(like)
    }
    with atomic_folder(folder) as unfinished:
        np.save(unfinished / "features.npy", features)
        pq.write_table(rows, unfinished / "rows.parquet")
        check = {"spec": spec.model_dump(), "operating_states": verdicts}
        (unfinished / "check.json").write_text(json.dumps(check, indent=1), encoding="utf-8")


def _samples(
    spec: GeneratorSpec,
    network: VelocityNetwork,
    clips: RealClips,
    like: NDArray[np.int64],
    references: NDArray[np.int64],
) -> tuple[NDArray[np.float16], NDArray[np.float32]]:
    """Log-mels (m, frames, 128) of the states of clips `like` (m,), and their band levels (m, 256)."""
    source, rng = torch.Generator().manual_seed(spec.seed), np.random.default_rng([spec.seed, 3])
    device, features, levels = clips.device, [], []
    for first in range(0, len(like), spec.batch_size):
        batch = like[first : first + spec.batch_size]
        reference = clips.crops(references[first : first + spec.batch_size], rng)
        noise = torch.randn(reference.shape, generator=source).to(device)
        words, mean, std = clips.conditioning(batch)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            x = sample(network, reference, noise, words, spec.strength, spec.sampling_steps)
        x = x * std + mean
        features.append(x.cpu().numpy().astype(np.float16))
        levels.append(band_levels(x))
    return np.concatenate(features), np.concatenate(levels)


def choose_references(
    states: Sequence[OperatingState], spec: GeneratorSpec
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each wanted sample a clip of its state, and the reference that it is made from: (m,) positions each.

    References are clips of other states of the same machine and section, none twice before all had their turn. A clip
    of the state itself would come back as a near copy: the mean over hundreds of frames survives the noise.
    """
    rng = np.random.default_rng([spec.seed, 2])
    groups, names = np.array([s.group for s in states]), np.array([str(s) for s in states])
    like, references = [], []
    for state, n in rare_states(states, spec.fill).items():
        own = names == str(state)
        others = np.flatnonzero((groups == state.group) & ~own)
        like.append(np.full(n, own.argmax()))
        references.append(np.resize(rng.permutation(others), n))
    return np.concatenate(like), np.concatenate(references)


def check_samples(
    spec: GeneratorSpec, clips: RealClips, like: NDArray[np.int64], levels: NDArray[np.float32]
) -> dict[str, Any]:
    """Whether samples are neither copies of real clips nor far from those of the state of clips `like` (m,).

    All is judged on band levels (m, 256), a space that no training shapes. The columns (m,) are

    nearest: the training clip of its machine and section that a sample is nearest to
    nearest_distance: its distance to that, 1 = usual between neighbours there
    own_distance: its distance to the nearest clip of its state, 1 = usual between neighbours of that
    verdict: one of `VERDICTS`
    """
    names, groups = np.array([str(s) for s in clips.states]), np.array([s.group for s in clips.states])
    nearest, distance, own_distance = np.empty(len(like), np.int64), np.empty(len(like)), np.empty(len(like))
    for group in np.unique(groups[like]):
        rows, real = groups[like] == group, np.flatnonzero(groups == group)
        windows = [clips.levels[i] for i in real]
        found, distance[rows], own_distance[rows] = nearest_clips(levels[rows], names[like[rows]], windows, names[real])
        nearest[rows] = real[found]
    return {
        "nearest": clips.index["clip"].take(nearest),
        "nearest_distance": distance,
        "own_distance": own_distance,
        "verdict": np.select([distance < spec.copy_below, own_distance > spec.far_above], VERDICTS[1:], VERDICTS[0]),
    }


def nearest_clips(
    samples: NDArray[np.float32],
    wanted: NDArray[np.str_],
    windows: Sequence[NDArray[np.float32]],
    states: NDArray[np.str_],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The clip of a machine nearest to each sample (m,), the distance to it and to the nearest of its state (m,).

    samples: (m, 256), and wanted: (m,) names of their states
    windows: of each clip (w, 256), and states: (n,) names of their states

    Distances are Euclidean, 1 = the median of those from clips (of the machine, or of the state) to their nearest
    neighbours. A state of one or two clips tells no such median, and takes that of its machine.
    """
    points, start = np.concatenate(windows), np.cumsum([0, *(len(w) for w in windows[:-1])])

    def to_clips(x: NDArray[np.float32]) -> NDArray[np.float64]:
        """Distance of points (k, 256) to the nearest window of each clip: (k, n)."""
        distance: NDArray[np.float64] = np.minimum.reduceat(cdist(x, points), start, axis=1)
        return distance

    distance, between = to_clips(samples), to_clips(points[start])
    np.fill_diagonal(between, np.inf)
    usual = np.median(between.min(axis=1)) or 1.0  # clips that are copies of each other are no unit
    own = np.where(wanted[:, None] == states, distance, np.inf).min(axis=1)
    for name in np.unique(wanted):
        rows = states == name
        few = rows.sum() < _FEW
        own[wanted == name] /= usual if few else np.median(between[np.ix_(rows, rows)].min(axis=1)) or usual
    return distance.argmin(axis=1), distance.min(axis=1) / usual, own


def accepted_samples(folder: Path) -> tuple[pa.Table, NDArray[np.float16]]:
    """Rows and features (k, frames, 128) of the samples that passed the check.

    Raises InputError if the folder is absent or damaged, or if hardly any sample passed.
    """
    try:
        features = np.load(folder / "features.npy", mmap_mode="r")
        rows = pq.read_table(folder / "rows.parquet")
        if features.shape[::2] != (rows.num_rows, N_MELS):
            raise ValueError("features and rows do not fit together")
    except (OSError, ValueError, EOFError) as error:  # Arrow's errors are ValueErrors
        reason = str(error).split("\n")[0]
        raise InputError(f"{folder}: not a generated set, or damaged ({reason}); delete it and run again") from None
    verdict = rows["verdict"].to_numpy()
    accepted = np.flatnonzero(verdict == "accepted")
    if len(accepted) < LEAST_ACCEPTED * len(verdict):
        counts = ", ".join(f"{n} {name}" for name, n in zip(*np.unique(verdict, return_counts=True), strict=True))
        raise InputError(
            f"of {len(verdict)} generated samples {len(accepted)} passed the check ({counts}); give the "
            "generator more steps, raise `far_above` if most are far, or train without generated clips"
        )
    return rows.take(accepted), features[accepted]
