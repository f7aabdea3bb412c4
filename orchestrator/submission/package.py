"""The package of a run.

<out>/authors.yaml                                    what a person says, made as a form to fill in
<out>/<label>/task2/<label>_1/<label>_1.meta.yaml     and the tables of each system beside it
<out>/<label>/task2/<label>.technical_report.pdf      goes into the zip file once a person has put it there
<out>/<label>.zip                                     what is submitted
"""

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

from orchestrator.fuse.result import read_result, result_folders
from orchestrator.ledger.folders import FUSED, RESULT
from orchestrator.submission.files import MAX_SYSTEMS, challenge_machines, write_submission
from orchestrator.submission.meta import system_meta
from orchestrator.submission.schema import AuthorsFile, faults, read_mapping
from scoring.atomic import atomic
from scoring.errors import InputError
from scoring.table import file_sha256, read_table

AUTHORS_FORM = "authors.yaml"  # lies beside the package, and is no part of it


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

    Raises
    ------
    InputError
        If the run has no such result, a result is damaged, or the authors' file cannot be used.
    """
    out = run / "package" if out is None else out
    folders = _system_folders(run, systems)
    results = {folder.name: read_result(folder) for folder in folders}
    tables = {folder.name: _fused_table(folder, results[folder.name]) for folder in folders}
    _check_one_data_set(results)
    out.mkdir(parents=True, exist_ok=True)
    form = out / AUTHORS_FORM
    if authors_file is None and not form.exists():
        form.write_bytes(files("orchestrator").joinpath("templates/authors.yaml").read_bytes())
    authors = _read_authors(authors_file or form, label)
    task = out / authors.label / "task2"
    for number, (name, result) in enumerate(results.items(), 1):
        _write_system(result, tables[name], task / f"{authors.label}_{number}", authors)
    for number in range(len(results) + 1, MAX_SYSTEMS + 1):  # of an earlier package
        shutil.rmtree(task / f"{authors.label}_{number}", ignore_errors=True)
    return _zip(out / authors.label)


def _system_folders(run: Path, systems: Sequence[str]) -> list[Path]:
    finished = {folder.name: folder for folder in result_folders(run) if folder != run}
    if not finished:
        raise InputError(f"{run}: no results in it; `tutti run` makes them")
    chosen = list(dict.fromkeys(systems)) or list(finished)
    for name in chosen:
        if name not in finished:
            raise InputError(f"{run}: no result of system {name!r}; there are {', '.join(finished)}")
    if len(chosen) > MAX_SYSTEMS:
        raise InputError(f"{run}: {len(chosen)} systems, the challenge takes {MAX_SYSTEMS}; name those to submit")
    return [finished[name] for name in chosen]


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


def _check_one_data_set(results: Mapping[str, Mapping[str, Any]]) -> None:
    if len({result["dataset"] for result in results.values()}) > 1:
        names = ", ".join(f"{name} ({result['dataset'][:8]})" for name, result in results.items())
        raise InputError(f"results on different data sets: {names}; name the systems of one data set")


def _read_authors(path: Path, label: str | None) -> AuthorsFile:
    try:
        raw = read_mapping(path.read_bytes()) | ({"label": label} if label else {})
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError as error:
        raise InputError(" ".join(f"{path}: {error}".split())) from None
    for key, text in faults(AuthorsFile, raw).items():
        raise InputError(f"--label: {text}" if label and key == "label" else f"{path}: {key}: {text}")
    return AuthorsFile.model_validate(raw)


def _write_system(result: Mapping[str, Any], table: pa.Table, folder: Path, authors: AuthorsFile) -> None:
    write_submission(table, folder)
    in_sample, lomo = (
        "unknown" if omega is None else f"{omega:.2f}"
        for omega in (result["delivered"]["in_sample"], result["delivered"]["lomo"])
    )
    head = (
        f"# Made by tutti {version('tutti-asd')}: system {result['system']} on data set {result['dataset'][:16]}, "
        f"scores {result['sha256'][:16]}.\n"
        f"# Omega of the results below {in_sample}; on machines without a say in the weights {lomo}.\n"
    )
    meta = yaml.safe_dump(system_meta(result, folder.name, authors), sort_keys=False, allow_unicode=True, width=120)
    with atomic(folder / f"{folder.name}.meta.yaml") as temporary:
        temporary.write_text(head + meta, encoding="utf-8")


def _zip(folder: Path) -> Path:
    """Zip the tables, meta files and report of a package's folder; the same content gives the same file."""
    label, path = folder.name, folder.with_name(f"{folder.name}.zip")
    forms = (f"{label}_*/*.csv", f"{label}_*/*.meta.yaml", f"{label}*.technical_report.pdf")
    names = [name for form in forms for name in sorted((folder / "task2").glob(form))]
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name in names:
            entry = zipfile.ZipInfo(name.relative_to(folder).as_posix())
            archive.writestr(entry, name.read_bytes(), zipfile.ZIP_DEFLATED)
    return path
