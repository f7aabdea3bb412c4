"""Generated clips of rare conditions: made once per data set, each set as a Ray task, for all branches that want it.

A set lies in `<out>/generated/<id>/`; the id covers settings, data and code. `check.json` in it says how the samples
were judged.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from branches.spec import BranchSpec, GeneratorSpec
from orchestrator.plan import Branch, digest
from scoring.errors import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from orchestrator.worker import Job

log = logging.getLogger(__name__)


def set_folder(spec: GeneratorSpec, job: Job) -> Path:
    """Where a set lies."""
    return job.generated / digest([spec.model_dump(), job.fingerprint, job.code])


def make_sets(branches: Sequence[Branch], job: Job, index: pa.Table) -> dict[str, str]:
    """Make the sets that branches want and that are not there, on the connected Ray cluster.

    Returns
    -------
    failures: branch_id → reason, of every branch whose set could not be made
    """
    wanted = {spec: set_folder(spec, job) for b in branches if (spec := b.spec.augmentation.generated) is not None}
    rare = {spec: folder for spec, folder in wanted.items() if _anything_rare(spec, index)}
    if len(rare) < len(wanted):
        log.warning("no condition is rare: nothing is generated, and branches train on recorded clips alone")
    failed = _run({spec: folder for spec, folder in rare.items() if not folder.exists()}, job, index)
    reasons = {b.branch_id: failed.get(spec) for b in branches if (spec := b.spec.augmentation.generated) is not None}
    return {branch_id: reason for branch_id, reason in reasons.items() if reason is not None}


def generated_clips(spec: BranchSpec, job: Job, index: pa.Table) -> tuple[pa.Table, NDArray[Any]] | None:
    """Rows and features (g, frames, 128) of the accepted samples a branch trains on; None if it wants none.

    Raises
    ------
    InputError
        If the set is damaged, or hardly any sample was accepted.
    """
    generator = spec.augmentation.generated
    if generator is None or not _anything_rare(generator, index):
        return None
    from branches.generator import read_set

    generated = read_set(set_folder(generator, job))
    accepted = generated.accepted()
    return generated.rows.take(accepted), generated.features[accepted]


def _anything_rare(spec: GeneratorSpec, index: pa.Table) -> bool:
    from branches.generator import conditions_of, rare_conditions

    train = index.filter(pc.equal(index["split"], "train"))
    return bool(rare_conditions(conditions_of(train), spec.fill))


def _run(missing: dict[GeneratorSpec, Path], job: Job, index: pa.Table) -> dict[GeneratorSpec, str]:
    """Train and sample the generators of the missing sets; the reason of each that failed."""
    if not missing:
        return {}
    import ray

    gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
    task = ray.remote(num_cpus=job.threads, num_gpus=gpus, max_retries=1)(_make)
    started = {
        spec: task.remote(spec, folder, job, index, "cuda" if gpus else "cpu") for spec, folder in missing.items()
    }
    failed = {}
    for spec, reference in started.items():
        log.info("generating clips of rare conditions (%d steps)", spec.steps)
        try:
            log.info("generated clips: %s", ray.get(reference))
        except InputError as error:
            failed[spec] = f"no clips were generated: {str(error).splitlines()[-1]}"
        except ray.exceptions.RayError as error:
            failed[spec] = f"no clips were generated: {error}"
    return failed


def _make(spec: GeneratorSpec, folder: Path, job: Job, index: pa.Table, device: str) -> str:
    """Train a generator, sample its set and write it; a line on what passed the check."""
    import torch

    from branches.audio import open_cache
    from branches.channels import with_cancellation
    from branches.generator import generate, train_generator, write_set

    torch.set_num_threads(job.threads)
    audio = open_cache(job.data, index, job.cache)
    if spec.channel == "cancel":
        audio = with_cancellation(audio, job.cache)
    checkpoint = job.checkpoints / f"generator-{folder.name}.pt"
    made = generate(train_generator(spec, audio, index, checkpoint, _silent, job.checkpoint_seconds, device))
    write_set(made, folder)
    checkpoint.unlink(missing_ok=True)
    passed = int((made.rows["verdict"].to_numpy() == "accepted").sum())
    return f"{passed} of {made.rows.num_rows} samples passed the check [{folder / 'check.json'}]"


def _silent(step: int, loss: float) -> None:
    pass
