"""From a run's folder to a packaged ensemble, as an MLflow model."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from branches.audio.formats import read_formats
from branches.checkpoint_files import file_digest, local_file, parts
from branches.data.layout import find
from branches.spec import BUILT_IN, PROJECTION, BranchSpec
from branches.spectra import spectrum_of
from orchestrator.fuse.result import read_result, system_folders
from orchestrator.ledger.folders import BRANCHES, RECORD, is_intact, read_finished, read_record
from orchestrator.model.manifest import MANIFEST, Manifest, Member, Normals
from orchestrator.model.reference import Reference
from orchestrator.system import stored
from orchestrator.training.worker import WEIGHTS, embeddings_file
from scoring.decisions import FALSE_ALARMS
from scoring.errors import InputError, naming
from scoring.table import groups, metadata_of

log = logging.getLogger(__name__)

# The model's entry, and the packages that it imports from, which come along as they are.
ENTRY = Path(__file__).with_name("mlflow_model.py")
_ROOT = Path(__file__).resolve().parents[2]
_PACKAGES = ("orchestrator", "branches", "fusion", "scoring")

# What the entry imports; the rest of what tutti depends on is for training and fusing.
REQUIRED = (
    *("torch", "torchaudio", "soundfile", "numpy", "scipy", "pyarrow", "pydantic", "psutil", "threadpoolctl"),
    *("filelock", "fsspec", "pandas", "mlflow"),
)


def export_system(run: Path, system: str | None, out: Path, false_alarms: float | None = None) -> Path:
    """Package a fused system of a run as an MLflow model in `out`; tables without weight are left out.

    system: may be None if the run has one
    false_alarms: share of normal clips above a threshold; None takes the challenge's

    Raises InputError if there is no such system, a file of it is lost or damaged, or `out` exists.
    """
    if out.exists():
        raise InputError(f"{out}: exists already; give another --out, or remove it")
    folders = system_folders(run, [system] if system else [])
    if len(folders) > 1:
        raise InputError(f"{run}: name one of its systems, {', '.join(folder.name for folder in folders)}")
    result = read_result(folders[0])
    parent = out.absolute().parent
    parent.mkdir(parents=True, exist_ok=True)
    with naming(out), tempfile.TemporaryDirectory(dir=parent, prefix=f".{out.name}.") as temporary:
        package, model = Path(temporary) / "ensemble", Path(temporary) / "model"
        _write_package(run, result, package, false_alarms or FALSE_ALARMS)
        about = {key: result[key] for key in ("system", "description", "dataset")}
        _save_model(package, model, {**about, "tutti": version("tutti-asd")})
        model.replace(out)
    return out


def _write_package(run: Path, result: Mapping[str, Any], folder: Path, false_alarms: float) -> None:
    for part in ("backbones", "branches", "normals"):
        (folder / part).mkdir(parents=True)
    names = {branch["table"]: branch["branch"] for branch in result["branches"]}
    weights = {name: weight for name, weight in result["delivered"]["table_weights"].items() if weight > 0}
    members: list[Member] = []
    branches: dict[str, BranchSpec] = {}
    embeddings: dict[str, NDArray[np.float32]] = {}  # of all clips, in the tables' order
    for name, weight in weights.items():
        branch_id = name.partition("/")[0]
        source = run / BRANCHES / branch_id
        if branch_id not in branches:
            _check_intact(source)
        table = read_finished(run, name)
        metadata = metadata_of(table)
        about = {
            "branch_id": branch_id,
            "name": names[name],
            "embedding": json.loads(metadata.get("embedding", "null")) or PROJECTION,
            "detector": json.loads(metadata["detector"]),
            "weight": weight,
        }
        member = stored(Member, about, source)
        members.append(member)
        if branch_id not in branches:
            spec = stored(BranchSpec, json.loads(metadata["spec"]), source)
            branches[branch_id] = _pack_branch(source / WEIGHTS, spec, folder, member.branch_file)
        embeddings[member.source] = _embeddings(source, member, table)
    formats, known = read_formats(run), groups(table)  # the same clips in all tables
    normals = [
        Normals(machine=machine, section=section, file=f"normals/{i}.npz", format=formats.get(machine))
        for i, (machine, section, _) in enumerate(known)
    ]
    manifest = Manifest(
        scale=result["delivered"]["scale"],
        members=members,
        branches=branches,
        normals=normals,
        false_alarms=false_alarms,
    )
    _fit(manifest, table, embeddings, Path(result["made"].get("data", "unknown")), folder)
    (folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


def _fit(
    manifest: Manifest, table: pa.Table, embeddings: Mapping[str, NDArray[np.float32]], data: Path, folder: Path
) -> None:
    """Pack what is known of each machine and section, from the training rows of a table and embeddings of all rows.

    data: where the run had its recordings, which need not be there any more
    """
    for normals, (machine, section, group) in zip(manifest.normals, groups(table), strict=True):
        rows = group & (table["split"].to_numpy() == "train")
        log.info("fitting the %d normals of %s section %d", rows.sum(), machine, section)
        clips, of_normals = table.filter(rows), {name: X[rows] for name, X in embeddings.items()}
        spectrum = spectrum_of([find(data, f"{machine}/train/{clip}") for clip in clips["clip"].to_pylist()])
        if spectrum is None:
            log.warning("the normals of %s are not in %s: its scores will not say what has changed", machine, data)
        Reference.fit(manifest, clips, of_normals, spectrum).save(folder / normals.file)


def _check_intact(branch: Path) -> None:
    """Every file of a branch must be as the ledger says."""
    record = read_record(branch)
    damaged = [file for file in record.files if not is_intact(branch, record, file)] if record else [RECORD]
    if damaged:
        raise InputError(f"{branch / damaged[0]}: lost or damaged; remove {branch}, and `tutti run` makes it again")


def _embeddings(source: Path, member: Member, table: pa.Table) -> NDArray[np.float32]:
    """A member's embeddings of all clips, mapped from a branch's folder."""
    file = source / embeddings_file(member.embedding)
    embeddings: NDArray[np.float32] = np.load(file, mmap_mode="r")
    if len(embeddings) != table.num_rows:
        raise InputError(f"{file}: {len(embeddings)} embeddings of {table.num_rows} clips; train it again")
    return embeddings


def _pack_branch(weights: Path, spec: BranchSpec, folder: Path, file: str) -> BranchSpec:
    """Pack the weights of a branch as `file`, and its backbone, once by its digest; the spec with its place there."""
    if not spec.is_frozen:
        shutil.copyfile(weights, folder / file)
    if spec.backbone.path in BUILT_IN:
        return spec
    try:
        source = local_file(spec.backbone.path, spec.backbone.sha256)
    except InputError as error:
        raise InputError(f"a branch's backbone must lie where the run had it: {error}") from None
    sha256 = file_digest(source)
    location = f"backbones/{sha256[:16]}/weights{source.suffix}"
    if not (folder / location).exists():
        (folder / location).parent.mkdir(exist_ok=True)
        weights, *config = parts(source)
        shutil.copyfile(weights, folder / location)
        for part in config:
            shutil.copyfile(part, (folder / location).with_name(part.name))
    backbone = spec.backbone.model_copy(update={"path": location, "sha256": sha256})
    return spec.model_copy(update={"backbone": backbone})


def _save_model(folder: Path, out: Path, about: Mapping[str, str]) -> None:
    """Wrap a package as an MLflow model whose code is a file, not a pickle, and comes along."""
    import orchestrator.tracking.tracker  # noqa: F401, I001 - sets what MLflow reads when it is imported
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema
    from mlflow.types.schema import AnyType

    # What is required is checked by the model: MLflow's own answer would repeat the recordings. A section may be null.
    inputs = {"machine": "string", "audio": "binary", "section": AnyType()}
    outputs = {"score": "double", "calibrated": "double", "threshold": "double", "anomaly": "boolean",
               "contributions": "string", "changed": "string", "warning": "string"}  # fmt: skip
    signature = ModelSignature(
        Schema([ColSpec(kind, name, required=False) for name, kind in inputs.items()]),
        Schema([ColSpec(kind, name) for name, kind in outputs.items()]),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*An input example was not provided")  # a recording would be a large one
        mlflow.pyfunc.save_model(
            out,
            python_model=str(ENTRY),
            artifacts={"ensemble": str(folder)},
            code_paths=[str(_ROOT / package) for package in _PACKAGES],
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIRED],
            signature=signature,
            metadata=about,
        )
