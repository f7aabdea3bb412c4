"""Generated clips of rare conditions: made once per data set, each set as a Ray task, for all branches that want it.

A set lies in `<out>/generated/<id>/`; the id covers settings, data and code. `check.json` in it says how the samples
were judged.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from branches.spec import BranchSpec, Channel, GeneratorSpec
from orchestrator.plan import Branch, digest, require_code
from scoring.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.worker import Job

log = logging.getLogger(__name__)

PROGRESS_SECONDS = 30.0


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
        return job.generated / digest([self.spec.model_dump(), self.channel, job.fingerprint, job.code])


def make_sets(branches: Sequence[Branch], job: Job, index: pa.Table) -> dict[str, str]:
    """Make the sets that branches want and that are not there, on the connected Ray cluster.

    Returns
    -------
    failures: branch_id → reason, of every branch whose set could not be made
    """
    by_branch = {b.branch_id: wanted for b in branches if (wanted := Wanted.by(b.spec)) is not None}
    distinct = list(dict.fromkeys(by_branch.values()))
    rare = [wanted for wanted in distinct if _anything_rare(wanted.spec, index)]
    if len(rare) < len(distinct):
        log.warning("no condition is rare: nothing is generated, and branches train on recorded clips alone")
    failed = _run([wanted for wanted in rare if not wanted.folder(job).exists()], job, index)
    return {branch_id: failed[wanted] for branch_id, wanted in by_branch.items() if wanted in failed}


def generated_clips(spec: BranchSpec, job: Job, index: pa.Table) -> tuple[pa.Table, NDArray[Any]] | None:
    """Rows and features (g, frames, 128) of the accepted samples a branch trains on; None if it wants none.

    Raises
    ------
    InputError
        If the set is damaged, or hardly any sample was accepted.
    """
    wanted = Wanted.by(spec)
    if wanted is None or not _anything_rare(wanted.spec, index):
        return None
    from branches.generator import read_set

    generated = read_set(wanted.folder(job))
    accepted = generated.accepted()
    return generated.rows.take(accepted), generated.features[accepted]


def _anything_rare(spec: GeneratorSpec, index: pa.Table) -> bool:
    from branches.generator import conditions_of, rare_conditions

    train = index.filter(pc.equal(index["split"], "train"))
    return bool(rare_conditions(conditions_of(train), spec.fill))


def _run(missing: Sequence[Wanted], job: Job, index: pa.Table) -> dict[Wanted, str]:
    """Train and sample the generators of missing sets; the reason of each that failed."""
    if not missing:
        return {}
    import ray

    task = ray.remote(num_cpus=job.threads, num_gpus=job.gpus, max_retries=1)(_make)
    started = {task.remote(wanted, job, index): wanted for wanted in missing}
    began, pending = time.monotonic(), list(started)
    failed: dict[Wanted, str] = {}
    log.info("generating clips of rare conditions: %d sets", len(missing))
    while pending:
        done, pending = ray.wait(pending, timeout=PROGRESS_SECONDS)
        for reference in done:
            try:
                log.info("generated clips: %s", ray.get(reference))
            except (InputError, ray.exceptions.RayError) as error:
                failed[started[reference]] = f"no clips were generated: {str(error).strip().splitlines()[-1]}"
        if not done:
            log.info("still generating clips (%.0f s)", time.monotonic() - began)
    return failed


def _make(wanted: Wanted, job: Job, index: pa.Table) -> str:
    """Train a generator, sample its set and write it; a line on what passed the check."""
    import torch

    from branches.audio import open_cache
    from branches.channels import with_cancellation
    from branches.generator import generate, train_generator, write_set

    require_code(job.code)
    torch.set_num_threads(job.threads)
    audio = open_cache(job.data, index, job.decoded)
    if wanted.channel == "cancel":
        audio = with_cancellation(audio, job.derived)
    folder = wanted.folder(job)
    checkpoint = job.checkpoints / f"generator-{folder.name}.pt"
    generator = train_generator(
        wanted.spec,
        audio,
        index,
        wanted.channel,
        checkpoint,
        checkpoint_seconds=job.checkpoint_seconds,
        device=job.device,
    )
    made = generate(generator)
    write_set(made, folder)
    checkpoint.unlink(missing_ok=True)
    passed = int((made.rows["verdict"].to_numpy() == "accepted").sum())
    return f"{passed} of {made.rows.num_rows} samples passed the check [{folder / 'check.json'}]"
