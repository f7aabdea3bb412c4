"""The package of a run: its folder, which `docs/submission.md` draws, and the zip file of that."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from orchestrator.fuse.result import read_result, system_folders
from orchestrator.ledger.folders import FUSED, RESULT
from orchestrator.submission.files import (
    MAX_SYSTEMS,
    PLACEHOLDER_LABEL,
    TEAM_LABEL,
    challenge_machines,
    write_submission,
)
from orchestrator.submission.meta import rounded, system_meta
from orchestrator.submission.schema import AuthorsFile, read_yaml
from orchestrator.system import validated
from scoring.atomic import atomic
from scoring.errors import InputError
from scoring.table import file_sha256, read_table

AUTHORS_FORM = "authors.yaml"  # lies beside the package, and is no part of it
PACKED = (".csv", ".meta.yaml", ".technical_report.pdf")


def make_package(
    run: Path,
    systems: Sequence[str] = (),
    out: Path | None = None,
    label: str | None = None,
    authors_file: Path | None = None,
) -> Path:
    """Write the challenge's package of a run and return the zip file.

    Parameters
    ----------
    run: folder of a finished `tutti run`
    systems: at most four, numbered in this order; default: all that the run has
    out: default: `package` in the run's folder
    label: `Surname_Affiliation_task2`; default: the one in the authors' file
    authors_file: default: `authors.yaml` in `out`, written as a form if it is not there

    Raises InputError if the run has no such result, a result is damaged, or the authors' file cannot be used.
    """
    out = run / "package" if out is None else out
    folders = system_folders(run, systems)
    if len(folders) > MAX_SYSTEMS:
        raise InputError(f"{run}: {len(folders)} systems, the challenge takes {MAX_SYSTEMS}; name those to submit")
    results = {folder.name: read_result(folder) for folder in folders}
    tables = {folder.name: _fused_table(folder, results[folder.name]) for folder in folders}
    if len({result["dataset"] for result in results.values()}) > 1:
        names = ", ".join(f"{name} ({result['dataset'][:8]})" for name, result in results.items())
        raise InputError(f"results on different data sets: {names}; name the systems of one data set")
    out.mkdir(parents=True, exist_ok=True)
    form = out / AUTHORS_FORM
    if authors_file is None and not form.exists():
        template = files("orchestrator").joinpath("templates/authors.yaml").read_text(encoding="utf-8")
        with atomic(form) as temporary:  # with the label, which need not be given again
            temporary.write_text(template.replace(PLACEHOLDER_LABEL, label or PLACEHOLDER_LABEL), encoding="utf-8")
    form = authors_file or form
    authors = validated(AuthorsFile, read_yaml(form.read_bytes(), form), str(form))
    label = label or authors.label
    if not TEAM_LABEL.fullmatch(label):
        raise InputError(f"{label!r} is no label such as Jiang_THU_task2; letters, digits and hyphens in each part")
    task = out / label / "task2"
    for number, (name, result) in enumerate(results.items(), 1):
        folder = task / f"{label}_{number}"
        write_submission(tables[name], folder)
        _write_meta(result, folder, authors)
    for number in range(len(results) + 1, MAX_SYSTEMS + 1):  # of an earlier package
        shutil.rmtree(task / f"{label}_{number}", ignore_errors=True)
    return _zip(out / label)


def _fused_table(folder: Path, result: Mapping[str, Any]) -> pa.Table:
    """The fused table of the result beside it, of the machines that a package is about."""
    path = folder / FUSED
    if not path.is_file() or result["sha256"] != file_sha256(path):
        raise InputError(f"{path}: damaged, or not of the {RESULT} beside it; run the system again")
    if result.get("transductive"):
        raise InputError(f"{folder}: its scores use statistics of test clips, which the challenge forbids")
    table = read_table(path)
    if not pc.any(pc.equal(table["split"], "test")).as_py():
        raise InputError(f"{folder}: the data have no test clips, so there is nothing to submit")
    return table.filter(pc.is_in(table["machine"], pa.array(challenge_machines(table))))


def _write_meta(result: Mapping[str, Any], folder: Path, authors: AuthorsFile) -> None:
    in_sample, lomo = (rounded(result["delivered"][kind]) or "unknown" for kind in ("in_sample", "lomo"))
    head = (
        f"# Made by tutti {version('tutti-asd')} from system {result['system']}, scores {result['sha256'][:16]}.\n"
        f"# Omega of the results below {in_sample}; on machines without a say in the weights {lomo}.\n"
    )
    meta = yaml.safe_dump(system_meta(result, folder.name, authors), sort_keys=False, allow_unicode=True, width=120)
    with atomic(folder / f"{folder.name}.meta.yaml") as temporary:
        temporary.write_text(head + meta, encoding="utf-8")


def _zip(folder: Path) -> Path:
    """Zip the tables, meta files and report of a package's folder; the same content gives the same file."""
    path = folder.with_name(f"{folder.name}.zip")
    found = [file for file in sorted(folder.rglob("*")) if file.name.endswith(PACKED)]
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for file in found:
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
            archive.writestr(entry, file.read_bytes(), zipfile.ZIP_DEFLATED)
    return path
