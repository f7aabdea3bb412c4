"""The ledger: what is finished, in folders whose record is written last.

out/branches/<branch_id>/   embeddings*.npy, branch.pt, tables/[<embedding>.]<detector>.parquet
out/failures/<branch_id>/   reason.txt: why the branch failed, until it is tried again
out/systems/<name>/         fused.parquet, held_out.parquet, result.json

Every file is written under a temporary name and renamed. The `record.json` of a branch has the SHA-256 of its files,
and what MLflow shall know of them; a file that is not in it, or is another, is not there. The ledger decides what is
done; MLflow is told afterwards, see `orchestrator/tracking/`.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

from scoring.atomic import atomic
from scoring.errors import InputError
from scoring.locks import locked
from scoring.table import file_sha256, read_table

BRANCHES = "branches"
FAILURES = "failures"
SYSTEMS = "systems"
REASON = "reason.txt"
RECORD = "record.json"
TABLES = "tables"
FUSED = "fused.parquet"
HELD_OUT = "held_out.parquet"
RESULT = "result.json"
REPORT = "report.html"  # who writes a result removes it
DIGESTS = "cache/digests.parquet"  # of the data set's clips, see `branches.data.digests`
ID, LOCATION = ".id", ".location"  # of the run in a folder, and where that folder was

Status = Literal["FINISHED", "FAILED", "KILLED"]


class Record(BaseModel):
    """What is known of one finished or failed piece of work.

    identity: tags by which its MLflow run is found again
    curve: pairs of step and loss
    files: SHA-256 by path within the folder
    embeddings, tables: what identifies a branch's embeddings, and its score tables by the names of their files
    names: what systems call these tables: `sub-system/configuration/seed`
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
    names: dict[str, list[str]] = {}


def read_record(folder: Path) -> Record | None:
    """The folder's record; None if there is none or it is damaged."""
    try:
        return Record.model_validate_json((folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return None


def write_record(folder: Path, record: Record) -> None:
    """Write the record, which commits the files that it names; a crash leaves the old one."""
    with atomic(folder / RECORD) as temporary:
        temporary.write_text(record.model_dump_json(indent=1), encoding="utf-8")


def is_intact(folder: Path, record: Record, file: str) -> bool:
    """Whether a file is what the record says."""
    try:
        return record.files.get(file) == file_sha256(folder / file)
    except OSError:
        return False


def is_finished(out: Path, branch_id: str, tables: Mapping[str, str]) -> bool:
    """Whether a branch's score tables are all there, intact and the ones that are identified by name."""
    folder = out / BRANCHES / branch_id
    record = read_record(folder)
    return record is not None and all(
        record.tables.get(name) == identity and is_intact(folder, record, f"{TABLES}/{name}.parquet")
        for name, identity in tables.items()
    )


def read_finished(out: Path, name: str) -> pa.Table:
    """The score table `<branch_id>/[<embedding>.]<detector>` of a finished branch."""
    return read_table(table_file(out, name))


def table_file(out: Path, name: str) -> Path:
    """The file of that score table."""
    branch_id, _, table = name.partition("/")
    return out / BRANCHES / branch_id / TABLES / f"{table}.parquet"


def add_systems(out: Path, branch_id: str, systems: Sequence[str], names: Mapping[str, list[str]]) -> None:
    """Note on a finished branch that these systems use it too, and what they call its tables."""
    folder = out / BRANCHES / branch_id
    if (record := read_record(folder)) is None:
        return
    tags = {**record.tags, "system": joined_systems(record, systems)}
    joined = record.model_copy(update={"tags": tags, "names": joined_names(record, names)})
    if joined != record:
        write_record(folder, joined)


def joined_systems(record: Record | None, systems: Sequence[str]) -> str:
    """The `system` tag of a branch that the systems in its record use, and `systems` too."""
    recorded = record.tags.get("system", "").split(",") if record else []
    return ",".join(sorted({*recorded, *systems} - {""}))


def joined_names(record: Record, names: Mapping[str, list[str]]) -> dict[str, list[str]]:
    """The names of a branch's tables, after which come those that its record has."""
    joined = {table: list(dict.fromkeys([*new, *record.names.get(table, [])])) for table, new in names.items()}
    return {**record.names, **joined}


@contextmanager
def only_driver(out: Path) -> Iterator[None]:
    """Hold the output folder; `InputError` if another process holds it, or nothing can be written there."""
    with ExitStack() as held:
        try:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(out / ".lock", wait=False))
        except TimeoutError:
            raise InputError(
                f"{out}: another run is writing to this folder; wait for it or give another --out"
            ) from None
        except OSError as error:
            raise InputError(f"{out}: cannot write there ({error.strerror}); give another --out") from None
        yield


def begin_anew(out: Path, branch_id: str) -> None:
    """Remove why a branch failed before, and what a killed process left half-written in its folder."""
    shutil.rmtree(out / FAILURES / branch_id, ignore_errors=True)
    for half in [*(out / BRANCHES / branch_id).rglob(".*")]:
        shutil.rmtree(half) if half.is_dir() else half.unlink()


def record_failure(out: Path, branch_id: str, record: Record, reason: str) -> Path:
    """Record why a branch failed; the text's file."""
    folder = out / FAILURES / branch_id
    folder.mkdir(parents=True, exist_ok=True)
    with atomic(folder / REASON) as temporary:
        temporary.write_text(reason, encoding="utf-8")
    tags = {**record.tags, "failure": reason.strip().splitlines()[-1][:500]}
    files = {REASON: file_sha256(folder / REASON)}
    write_record(folder, record.model_copy(update={"status": "FAILED", "tags": tags, "files": files}))
    return folder / REASON


def folder_id(out: Path) -> str:
    """Identifies the run in an output folder, on every host that runs a driver on it; empty if there is none."""
    path = out / ID
    return path.read_text(encoding="utf-8") if path.exists() else ""


def new_folder_id(out: Path, shared: bool = False) -> str:
    """The same, made if there is none.

    shared: whether it is for a store that shows other folders' runs, too; there a copy of a folder is another run
    """
    location = out / LOCATION
    before = Path(os.fsdecode(location.read_bytes())) if location.exists() else out
    is_copy = bool(folder_id(out)) and folder_id(before) == folder_id(out) and not before.samefile(out)
    if not folder_id(out) or (is_copy and shared):
        with atomic(out / ID) as temporary:
            temporary.write_text(uuid.uuid4().hex[:16], encoding="utf-8")
        is_copy = False
    if not is_copy:  # as long as it has the id of the folder that it was copied from, it is known to be a copy
        with atomic(location) as temporary:
            temporary.write_bytes(os.fsencode(out.resolve()))
    return folder_id(out)
