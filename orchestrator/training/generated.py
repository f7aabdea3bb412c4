"""Generated clips of rare conditions: a set is made once, by the first branch that wants it.

A set lies in `<out>/generated/<id>/`; the id covers settings, training clips and `TRAINING_VERSION`. `check.json` in it
says how the samples were judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock

from branches.spec import TRAINING_VERSION, BranchSpec, Channel, GeneratorSpec
from orchestrator.ledger.storage import LAST, Storage
from orchestrator.plan import Branch, digest, identity
from orchestrator.training.job import Job, StageReport

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from branches.audio.cache import AudioCache


@dataclass(frozen=True)
class Wanted:
    """A set of generated clips: a generator's settings, and the channel that it hears."""

    spec: GeneratorSpec
    channel: Channel

    @classmethod
    def by(cls, spec: BranchSpec) -> Wanted | None:
        """What a branch wants, if anything."""
        generator = spec.augmentation.generated
        return None if generator is None else cls(generator, spec.channel)

    def folder(self, job: Job) -> Path:
        """Where the set lies."""
        return job.generated / digest([identity(self.spec), self.channel, job.training, TRAINING_VERSION])


def nothing_rare(branches: Sequence[Branch], index: pa.Table) -> bool:
    """Whether a branch wants generated clips, and no condition is rare enough to have any."""
    wanted = [w for b in branches if (w := Wanted.by(b.spec)) is not None]
    return not all(_anything_rare(w.spec, index) for w in wanted)


def in_order(branches: Sequence[Branch]) -> list[Branch]:
    """Branches as they should start: of those that share a set the first at once, the others when it may be there."""
    sets = [Wanted.by(branch.spec) for branch in branches]
    waiting = {i for i, wanted in enumerate(sets) if wanted is not None and wanted in sets[:i]}
    makers = {i for i, wanted in enumerate(sets) if wanted is not None} - waiting
    order = sorted(range(len(branches)), key=lambda i: (i not in makers, i in waiting))
    return [branches[i] for i in order]


def pull_sets(branches: Sequence[Branch], job: Job, storage: Storage) -> None:
    """Fetch the sets that branches want and other nodes have made."""
    for folder in _folders(branches, job):
        storage.pull(folder.relative_to(job.out).as_posix())


def _folders(branches: Sequence[Branch], job: Job) -> list[Path]:
    return list(dict.fromkeys(wanted.folder(job) for b in branches if (wanted := Wanted.by(b.spec)) is not None))


def on_sets(branches: Sequence[Branch], job: Job) -> list[str]:
    """What to say of the sets that branches want and that are there."""
    import pyarrow.parquet as pq

    lines = []
    for folder in [folder for folder in _folders(branches, job) if folder.exists()]:
        verdicts = pq.read_table(folder / "rows.parquet", columns=["verdict"])["verdict"].to_pylist()
        passed = verdicts.count("accepted")
        lines.append(f"generated clips: {passed} of {len(verdicts)} samples passed the check [{folder / 'check.json'}]")
    return lines


def generated_clips(
    spec: BranchSpec, job: Job, index: pa.Table, audio: AudioCache, report: StageReport
) -> tuple[pa.Table, NDArray[Any]] | None:
    """Rows and features (g, frames, 128) of the accepted samples a branch trains on; None if it wants none.

    A set that is not there is made; other branches that want it wait.

    Raises
    ------
    InputError
        If the set is damaged, or hardly any sample was accepted.
    """
    wanted = Wanted.by(spec)
    if wanted is None or not _anything_rare(wanted.spec, index):
        return None
    from branches.generator import read_set

    folder = wanted.folder(job)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        storage = Storage(job.storage, job.out) if job.storage else None
        if storage is not None:
            storage.pull(folder.relative_to(job.out).as_posix())
        if not (folder / LAST).exists():
            _make(wanted, job, index, audio, report)
            if storage is not None:
                storage.push(folder.relative_to(job.out).as_posix())
    generated = read_set(folder)
    accepted = generated.accepted()
    if spec.machines is not None:
        accepted = accepted[np.isin(generated.rows["machine"].to_numpy().astype(str)[accepted], list(spec.machines))]
    return generated.rows.take(accepted), generated.features[accepted]


def _anything_rare(spec: GeneratorSpec, index: pa.Table) -> bool:
    from branches.generator import conditions_of, rare_conditions

    train = index.filter(pc.equal(index["split"], "train"))
    return bool(rare_conditions(conditions_of(train), spec.fill))


def _make(wanted: Wanted, job: Job, index: pa.Table, audio: AudioCache, report: StageReport) -> None:
    """Train a generator, sample its set and write it."""
    from branches.generator import generate, train_generator, write_set

    folder = wanted.folder(job)
    checkpoint = job.checkpoints / f"generator-{folder.name}.pt"
    generator = train_generator(
        wanted.spec,
        audio,
        index,
        wanted.channel,
        checkpoint,
        lambda step, loss: report("generator", step, wanted.spec.steps, loss),
        job.checkpoint_seconds,
        job.device,
    )
    write_set(generate(generator), folder)
    checkpoint.unlink(missing_ok=True)
