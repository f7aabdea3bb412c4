"""The ledger: what is finished, as folders that are there as a whole or not at all.

out/baselines/log_mel/      tables/mahalanobis.parquet: what no network is needed for
out/branches/<branch_id>/   embeddings*.npy, branch.pt, tables/[<embedding>.]<detector>.parquet, summary.json
out/failures/<branch_id>/   reason.txt: why the branch failed, until it is tried again
out/given_up/<branch_id>/   reason.txt: why it was given up, until it is asked for again
out/systems/<name>/         fused.parquet, result.json
out/unfinished/             folders that are being filled; each is renamed when it is complete

Each folder has a `record.json`: the SHA-256 of its files, and what MLflow shall know of them. The ledger decides what
is done; MLflow is told afterwards, see `orchestrator/tracking/sync.py`.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pyarrow as pa
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from orchestrator.plan import digest
from scoring.atomic import atomic
from scoring.errors import InputError
from scoring.table import file_sha256, read_table

BASELINES = "baselines"
BRANCHES = "branches"
FAILURES = "failures"
GIVEN_UP = "given_up"
SYSTEMS = "systems"
UNFINISHED = "unfinished"
REASON = "reason.txt"
RECORD = "record.json"
TABLES = "tables"
FUSED = "fused.parquet"
HELD_OUT = "held_out.parquet"
RESULT = "result.json"
_OF, _OLD = "--", ".old"  # in the name of a folder that is being replaced: <kind>--<name>.<token>.old


Status = Literal["FINISHED", "FAILED", "KILLED"]


class Record(BaseModel):
    """What is known of one finished or failed piece of work.

    identity: tags by which its MLflow run is found again
    curve: pairs of step and loss
    files: SHA-256 by path within the folder
    embeddings, tables: what identifies a branch's embeddings, and its score tables by their names
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    identity: dict[str, str]
    status: Status = "FINISHED"
    tags: dict[str, str] = {}
    params: dict[str, str] = {}
    metrics: dict[str, float] = {}
    curve: list[tuple[int, float]] = []
    files: dict[str, str] = {}
    embeddings: str = ""
    tables: dict[str, str] = {}

    @property
    def digest(self) -> str:
        """16 hex digits that stand for the whole record."""
        return digest(self.model_dump())


def read_record(folder: Path) -> Record | None:
    """The folder's record; None if there is none or it is damaged."""
    try:
        return Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Write the record; a crash leaves the old one."""
    with atomic(folder / RECORD) as temporary:
        temporary.write_text(record.model_dump_json(indent=1), encoding="utf-8")


def checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder but its record, by path within it."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != RECORD)
    return {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}


def is_intact(folder: Path, record: Record, file: str) -> bool:
    """Whether a file is what the record says."""
    try:
        return record.files.get(file) == file_sha256(folder / file)
    except OSError:
        return False


@contextmanager
def new_folder(out: Path, kind: str, name: str) -> Iterator[Path]:
    """A folder to fill, which takes the place of `out/kind/name` at the end of the block unless that raises."""
    folder = out / UNFINISHED / f"{name}.{uuid.uuid4().hex[:8]}"
    folder.mkdir(parents=True)
    try:
        yield folder
        _replace(folder, out / kind / name)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _replace(new: Path, folder: Path) -> None:
    """Two processes may do this at once, when a node that was taken for lost comes back: the last one stays."""
    folder.parent.mkdir(exist_ok=True)
    if folder.exists():
        # A kill between the two renames leaves the old folder under this name alone; `_recover` brings it back.
        old = new.with_name(f"{folder.parent.name}{_OF}{new.name}{_OLD}")
        folder.rename(old)
        new.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    else:
        new.rename(folder)


def _recover(out: Path) -> None:
    """Bring back folders whose replacement was killed between its two renames."""
    for old in (out / UNFINISHED).glob(f"*{_OF}*{_OLD}"):
        kind, _, name = old.name.removesuffix(_OLD).partition(_OF)
        folder = out / kind / name.rpartition(".")[0]
        if not folder.exists():
            old.rename(folder)


def is_finished(out: Path, name: str, tables: Mapping[str, str], kind: str = BRANCHES) -> bool:
    """Whether a branch's score tables are all there, intact and the ones that are identified by detector."""
    folder = out / kind / name
    record = read_record(folder)
    return record is not None and all(
        record.tables.get(name) == identity and is_intact(folder, record, f"{TABLES}/{name}.parquet")
        for name, identity in tables.items()
    )


def refuse_older(out: Path) -> None:
    """Raise `InputError` if tutti 0.1 made the branches in `out`, which it identified by its code: none can be used."""
    for path in (out / BRANCHES).glob(f"*/{RECORD}"):
        if b'"embeddings"' not in path.read_bytes():
            raise InputError(
                f"{out}: made by tutti 0.1, whose branches this version cannot go on from and leaves as they are; "
                "give another --out"
            )
        return


def read_finished(out: Path, name: str) -> pa.Table:
    """The score table `<branch_id>/<detector>` of a finished branch."""
    branch_id, _, detector = name.partition("/")
    return read_table(out / BRANCHES / branch_id / TABLES / f"{detector}.parquet")


def add_systems(out: Path, branch_id: str, systems: Sequence[str]) -> None:
    """Note on a finished branch that these systems use it too."""
    folder = out / BRANCHES / branch_id
    record = read_record(folder)
    if record is None:
        return
    joined = joined_systems(record, systems)
    if joined != record.tags.get("system"):
        write_record(folder, record.model_copy(update={"tags": {**record.tags, "system": joined}}))


def joined_systems(record: Record | None, systems: Sequence[str]) -> str:
    """The `system` tag of a branch that the systems in its record use, and `systems` too."""
    recorded = record.tags.get("system", "").split(",") if record else []
    return ",".join(sorted({*recorded, *systems} - {""}))


@contextmanager
def only_driver(out: Path) -> Iterator[None]:
    """Hold the output folder, with what an earlier driver has finished; `InputError` if another process holds it."""
    lock = FileLock(out / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{out}: another run is writing to this folder; wait for it or give another --out") from None
    try:
        _recover(out)
        yield
    finally:
        lock.release()


def tidy(out: Path, branch_ids: Sequence[str]) -> None:
    """Remove what a killed run left half-written, and why branches that are tried now were not finished before."""
    shutil.rmtree(out / UNFINISHED, ignore_errors=True)
    for branch_id in branch_ids:
        for kind in (FAILURES, GIVEN_UP):
            shutil.rmtree(out / kind / branch_id, ignore_errors=True)


def record_reason(out: Path, kind: str, branch_id: str, record: Record, reason: str) -> Path:
    """Record why a branch is not finished, under `FAILURES` or `GIVEN_UP`; the text's file."""
    with new_folder(out, kind, branch_id) as folder:
        (folder / REASON).write_text(reason, encoding="utf-8")
        tags = {**record.tags, "failure": reason.strip().splitlines()[-1][:500]}
        status = "FAILED" if kind == FAILURES else "KILLED"
        write_record(folder, record.model_copy(update={"status": status, "tags": tags, "files": checksums(folder)}))
    return out / kind / branch_id / REASON


def records(out: Path) -> Iterator[tuple[Path, Record]]:
    """Every folder of the ledger that has a record."""
    for kind in (BASELINES, BRANCHES, FAILURES, GIVEN_UP, SYSTEMS):
        for path in sorted((out / kind).glob(f"*/{RECORD}")):
            record = read_record(path.parent)
            if record is not None:
                yield path.parent, record
