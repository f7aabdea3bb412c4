"""Generated clips of rare operating states: a set is made once, by the first branch that wants it.

A set lies in `<out>/generated/<id>/`; the id covers settings, training clips and `TRAINING_VERSION`. `check.json` in it
says how the samples were judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from branches.spec import TRAINING_VERSION, BranchSpec, GeneratorSpec
from orchestrator.ledger.storage import LAST, Storage
from orchestrator.plan import Branch, digest, identity
from orchestrator.training.job import Job, StageReport
from scoring.locks import locked

GENERATOR = "generator of clips"  # the stage, as a run shows it

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from branches.audio.cache import AudioCache


def set_id(spec: BranchSpec, training: str) -> str:
    """Identifies the set that a branch trains on; empty if it wants none.

    training: fingerprint of the training clips
    """
    generator = spec.augmentation.generated
    return digest([identity(generator), spec.channel, training, TRAINING_VERSION]) if generator is not None else ""


def set_folder(spec: BranchSpec, job: Job) -> Path | None:
    """Where the set lies that a branch trains on; None if it wants none."""
    name = set_id(spec, job.training)
    return job.generated / name if name else None


def set_folders(branches: Sequence[Branch], job: Job) -> list[Path]:
    """Where the sets lie that branches want, each once."""
    return list(dict.fromkeys(folder for branch in branches if (folder := set_folder(branch.spec, job)) is not None))


def nothing_rare(branches: Sequence[Branch], index: pa.Table) -> bool:
    """Whether a branch wants generated clips, and no operating state is rare enough to have any."""
    generators = {generator for branch in branches if (generator := branch.spec.augmentation.generated) is not None}
    return not all(_anything_rare(generator, index) for generator in generators)


def makers(branches: Sequence[Branch], job: Job) -> dict[str, Path]:
    """Of branches that share a set the first, by branch_id, with the set's folder."""
    first: dict[Path, str] = {}
    for branch in branches:
        if (folder := set_folder(branch.spec, job)) is not None:
            first.setdefault(folder, branch.branch_id)
    return {branch_id: folder for folder, branch_id in first.items()}


def in_order(branches: Sequence[Branch], job: Job) -> list[Branch]:
    """Branches as they should start: of those that share a set the first at once, the others when it may be there."""
    first = makers(branches, job)

    def turn(branch: Branch) -> int:
        return 0 if branch.branch_id in first else 1 if set_folder(branch.spec, job) is None else 2

    return sorted(branches, key=turn)


def on_sets(branches: Sequence[Branch], job: Job) -> list[str]:
    """What to say of the sets that branches want and that are there."""
    import pyarrow.parquet as pq

    lines = []
    for folder in [folder for folder in set_folders(branches, job) if (folder / LAST).exists()]:
        verdicts = pq.read_table(folder / "rows.parquet", columns=["verdict"])["verdict"].to_pylist()
        passed = verdicts.count("accepted")
        lines.append(f"generated clips: {passed} of {len(verdicts)} samples passed the check [{folder / LAST}]")
    return lines


def generated_clips(
    spec: BranchSpec, job: Job, index: pa.Table, audio: AudioCache, report: StageReport
) -> tuple[pa.Table, NDArray[Any]] | None:
    """Rows and features (g, frames, 128) of the accepted samples a branch trains on; None if it wants none.

    A set that is not there is made; other branches that want it wait.

    Raises InputError if the set is damaged, or hardly any sample was accepted.
    """
    folder, generator = set_folder(spec, job), spec.augmentation.generated
    if folder is None or generator is None or not _anything_rare(generator, index):
        return None
    from branches.generator import accepted_samples, generate, real_clips, train_generator

    folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.with_suffix(".lock")):
        storage, name = Storage(job.storage, job.out) if job.storage else None, folder.relative_to(job.out).as_posix()
        if storage is not None:
            storage.pull(name)
        if not (folder / LAST).exists():
            checkpoint = job.checkpoints / f"generator-{folder.name}.pt"
            clips = real_clips(audio, index, spec.channel, generator.crop_seconds, job.device)
            network = train_generator(
                generator,
                clips,
                checkpoint,
                lambda step, loss: report(GENERATOR, step, generator.steps, loss),
                job.checkpoint_seconds,
            )
            generate(generator, network, clips, folder)
            checkpoint.unlink(missing_ok=True)
            if storage is not None:
                storage.push(name)
    return accepted_samples(folder)


def _anything_rare(spec: GeneratorSpec, index: pa.Table) -> bool:
    from branches.generator import rare_states, states_of

    train = index.filter(pc.equal(index["split"], "train"))
    return bool(rare_states(states_of(train), spec.fill))
