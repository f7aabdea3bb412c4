"""The run of the golden system that most tests look at, and the model that it was exported to."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from mlflow import MlflowClient
from mlflow.entities import Run as Tracked
from numpy.typing import NDArray

from orchestrator.model.export import export_system
from orchestrator.model.manifest import MANIFEST, package_of
from scoring.table import read_table
from tests.commands import tutti

BACKBONE = Path(__file__).parent / "branches" / "fixtures" / "pretrained.pt"
SYSTEM = Path(__file__).parent / "golden" / "golden.yaml"
NAME = SYSTEM.stem
PRINTED = "printed.json"


class FinishedRun:
    """A folder with a data set, a checkpoint, what `tutti run` made of them and printed, and the exported model.

    `rotor` has two domains and labels, `pump` neither. With one labelled machine no branch loses its weight.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.model = folder, folder / "out", folder / "model"
        self.data, self.backbone, self.system = folder / "data", folder / BACKBONE.name, folder / SYSTEM.name

    @property
    def printed(self) -> dict[str, Any]:
        return json.loads((self.folder / PRINTED).read_text())

    @property
    def result(self) -> dict[str, Any]:
        return self.printed["systems"][NAME]

    def clips(self, machine: str, split: str = "test") -> list[Path]:
        return sorted((self.data / machine / split).iterdir())

    def fused(self, machine: str | None = None) -> pa.Table:
        """The system's scores: of all clips, or of a machine's test clips."""
        table = read_table(self.out / "systems" / NAME / "fused.parquet")
        return table.filter((pc.field("machine") == machine) & (pc.field("split") == "test")) if machine else table

    def copy(self, folder: Path) -> "FinishedRun":
        """A copy of the run's folder that may be changed; data, checkpoint and system file are the same."""
        shutil.copytree(self.out, folder / "out", copy_function=shutil.copy)
        for name in (self.data.name, self.backbone.name, self.system.name, PRINTED):
            (folder / name).symlink_to(self.folder / name)
        return FinishedRun(folder)


def finish_run(folder: Path, dataset: Path) -> None:
    run = FinishedRun(folder)
    shutil.copytree(dataset, run.data)
    for path in (run.data / "pump").rglob("*_target_train_*.wav"):
        path.unlink()
    for i, path in enumerate(run.clips("pump")):
        path.rename(path.with_name(f"section_00_{i:04d}.wav"))
    shutil.copy(BACKBONE, run.backbone)
    run.system.write_text(SYSTEM.read_text().replace(BACKBONE.name, str(run.backbone)))
    finished = tutti("run", run.system, "--data", run.data, "--out", run.out, "--json", timeout=600)
    assert finished.returncode == 0, finished.stderr
    (folder / PRINTED).write_text(finished.stdout)
    export_system(run.out, NAME, run.model)


def manifest_of(model: Path) -> dict[str, Any]:
    return json.loads((package_of(model) / MANIFEST).read_text())


def contributions(scores: pa.Table) -> NDArray[np.float64]:
    """What each member of a model contributes to the scores of m clips: (members, m)."""
    return np.array([[part["contribution"] for part in parts] for parts in scores["contributions"].to_pylist()]).T


class Store:
    def __init__(self, out: Path) -> None:
        self.uri = f"sqlite:///{out / 'mlflow.db'}"
        self.client = MlflowClient(self.uri)
        (self.experiment,) = [e for e in self.client.search_experiments() if e.name != "Default"]

    def runs(self, role: str) -> list[Tracked]:
        return list(self.client.search_runs([self.experiment.experiment_id], f"tags.role = '{role}'"))

    def branches(self) -> list[Tracked]:
        return [branch for branch in self.runs("branch") if branch.data.tags["system"]]

    def losses(self, run: Tracked) -> list[int]:
        return [loss.step for loss in self.client.get_metric_history(run.info.run_id, "loss")]
