"""The package of a run.

<out>/authors.yaml                                    what a person says, made as a form to fill in
<out>/<label>/task2/<label>_1/<label>_1.meta.yaml     and the tables of each system beside it
<out>/<label>/task2/<label>.technical_report.pdf      goes into the zip file once a person has put it there
<out>/<label>.zip                                     what is submitted
"""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Sequence
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml
from pydantic import ValidationError

from orchestrator.fuse.result import read_result, result_folders
from orchestrator.ledger.folders import FUSED, RESULT
from orchestrator.submission.files import AUTHORS_FORM, MAX_SYSTEMS, challenge_machines, write_submission
from orchestrator.submission.meta import system_meta
from orchestrator.submission.schema import AuthorsFile
from scoring.atomic import atomic
from scoring.errors import InputError
from scoring.table import file_sha256, read_table


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
    results = {folder: _read_result(folder) for folder in folders}
    tables = {folder: read_table(folder / FUSED) for folder in folders}
    _check_usable(results, tables)
    out.mkdir(parents=True, exist_ok=True)
    authors = _read_authors(authors_file or _form(out), label)
    task = out / authors.label / "task2"
    for old in task.glob(f"{authors.label}_[1-{MAX_SYSTEMS}]"):
        shutil.rmtree(old)
    for number, (folder, result) in enumerate(results.items(), 1):
        _write_system(folder, result, tables[folder], task / f"{authors.label}_{number}", authors)
    return _zip(out / authors.label, authors.label)


def _system_folders(run: Path, systems: Sequence[str]) -> list[Path]:
    finished = [folder.name for folder in result_folders(run)]
    if not finished:
        raise InputError(f"{run}: no results in it; `tutti run` makes them")
    for name in systems:
        if name not in finished:
            raise InputError(f"{run}: no result of system {name!r}; there are {', '.join(finished)}")
    chosen = list(dict.fromkeys(systems)) or finished
    if len(chosen) > MAX_SYSTEMS:
        raise InputError(f"{run}: {len(chosen)} systems, the challenge takes {MAX_SYSTEMS}; name those to submit")
    return [run / "systems" / name for name in chosen]


def _read_result(folder: Path) -> dict[str, Any]:
    """The result, if it belongs to the fused table beside it."""
    result = read_result(folder)
    if result["sha256"] != file_sha256(folder / FUSED):
        raise InputError(f"{folder / FUSED}: damaged, or not of the {RESULT} beside it; run the system again")
    return result


def _check_usable(results: dict[Path, dict[str, Any]], tables: dict[Path, pa.Table]) -> None:
    for folder, result in results.items():
        if result.get("transductive"):
            raise InputError(f"{folder}: its scores use statistics of test clips, which the challenge forbids")
        if not pc.any(pc.equal(tables[folder]["split"], "test")).as_py():
            raise InputError(f"{folder}: the data have no test clips, so there is nothing to submit")
    if len({result["dataset"] for result in results.values()}) > 1:
        names = ", ".join(f"{folder.name} ({result['dataset'][:8]})" for folder, result in results.items())
        raise InputError(f"results on different data sets: {names}; name the systems of one data set")


def _form(out: Path) -> Path:
    """The authors' file in `out`, a form to fill in if it is new."""
    path = out / AUTHORS_FORM
    if not path.exists():
        path.write_text(
            files("orchestrator").joinpath("templates/authors.yaml").read_text(encoding="utf-8"), encoding="utf-8"
        )
    return path


def _read_authors(path: Path, label: str | None) -> AuthorsFile:
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise InputError(f"{path}: not a mapping with the keys {', '.join(AuthorsFile.model_fields)}")
        return AuthorsFile.model_validate({**raw, **({"label": label} if label else {})})
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not YAML: {error}".replace("\n", " ")) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        where = "--label" if label and key == "label" else f"{path}: {key}"
        raise InputError(f"{where}: {first['msg'].removeprefix('Value error, ')} (it is {first['input']!r})") from None


def _write_system(folder: Path, result: dict[str, Any], table: pa.Table, target: Path, authors: AuthorsFile) -> None:
    write_submission(table.filter(pc.is_in(table["machine"], pa.array(challenge_machines(table)))), target)
    meta = system_meta(result, target.name, authors)
    head = f"# Made by tutti {version('tutti-asd')}: system {folder.name} on data set {result['dataset'][:16]}, "
    head += f"scores {result['sha256'][:16]}.\n# {_omegas(result['delivered'])}\n"
    text = yaml.safe_dump(meta, sort_keys=False, allow_unicode=True, width=120)
    (target / f"{target.name}.meta.yaml").write_text(head + text, encoding="utf-8")


def _omegas(delivered: dict[str, Any]) -> str:
    omegas = {
        name: "unknown" if delivered[name] is None else f"{delivered[name]:.2f}" for name in ("in_sample", "lomo")
    }
    return (
        f"Omega of the results below {omegas['in_sample']}; on machines without a say in the weights {omegas['lomo']}."
    )


def _zip(folder: Path, label: str) -> Path:
    """Zip the systems and the report of a package's folder; the same content gives the same file."""
    task = folder / "task2"
    names = [path for path in sorted(task.glob(f"{label}_*/*")) if path.is_file()]
    names += task.glob(f"{label}*.technical_report.pdf")
    path = folder.with_name(f"{label}.zip")
    with atomic(path) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(
                zipfile.ZipInfo(name.relative_to(folder).as_posix()), name.read_bytes(), zipfile.ZIP_DEFLATED
            )
    return path
