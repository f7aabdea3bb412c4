"""A small run and its submission package, made of real tables by the code that makes them; and an MLflow store."""

import json
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from branches.data.dataset import index_of
from orchestrator.submission.package import make_package
from orchestrator.system import load_system
from orchestrator.tracking.tracker import open_tracker
from scoring.metrics import official_metrics
from scoring.table import SCHEMA, conform, write_table

LABEL = "Jiang_THU_task2"
AFFILIATION = {"abbreviation": "THU", "institute": "Tsinghua University", "location": "Beijing, China"}
AUTHOR = {"firstname": "Zoë", "lastname": "Müller", "email": "zoe@example.org", "affiliation": AFFILIATION}
AUTHORS = {"abstract": "Scores of several branches are added.", "source_code": None, "authors": [AUTHOR]}


def clip_paths(machine, labelled):
    train = [f"train/section_00_source_train_normal_{i:04d}_noAttribute.wav" for i in range(12)]
    test = [f"test/section_00_{i:04d}.wav" for i in range(20)]
    if labelled:
        cells = product(("source", "target"), ("normal", "anomaly"), range(5))
        test = [f"test/section_00_{domain}_test_{state}_{i:04d}_noAttribute.wav" for domain, state, i in cells]
    return [f"{machine}/{path}" for path in [*train, *test]]


def write_truth(folder, machine, rows):
    """Ground truth of a machine's test clips, as the organisers publish it."""
    for kind, column, one in (("data", "condition", "anomaly"), ("domain", "domain", "target")):
        path = folder / f"ground_truth_{kind}" / f"ground_truth_{machine}_section_00_test.csv"
        path.parent.mkdir(exist_ok=True)
        path.write_text("".join(f"{r['clip']},{int(r[column] == one)}\n" for r in rows if r["split"] == "test"))


def write_result(run, system, paths, seed=0, labelled=True):
    """A system's fused table and result, as a run leaves them; anomalies are two standard deviations above normals."""
    index, rng = index_of(paths), np.random.default_rng(seed)
    anomaly = index["condition"].to_numpy() == "anomaly"
    score = pa.array(rng.normal(size=index.num_rows) + 2 * anomaly + rng.integers(0, 2, index.num_rows))
    columns = [score if name in ("score", "calibrated") else index[name] for name in SCHEMA.names]
    table = conform(pa.table(columns, schema=SCHEMA))
    folder, spec = run / "systems" / system, load_system(system)
    folder.mkdir(parents=True)
    weights = {s: {c: 1 / len(cs) for c in cs} for s, cs in spec.subsystems.items()}
    measured = official_metrics(table).as_dict() if labelled else {"omega": None, "machines": None}
    result = {
        **{"system": system, "spec": spec.model_dump(), "dataset": "d" * 64, "omega": measured["omega"]},
        **{"branches": [], "methods": {}, "made": {}, "headline": "", "delivers": "uniform weights"},
        "sha256": write_table(table, folder / "fused.parquet"),
        "delivered": {"method": "uniform", "weights": weights, "in_sample": measured["omega"], "lomo": None},
        "machines": {"in_sample": measured["machines"], "lomo": None},
    }
    (folder / "result.json").write_text(json.dumps(result))


class Case:
    """A data set (names alone), a run of s1 and s2 on it, and its package; nobody knows labels of `hidden` machines."""

    def __init__(self, root, hidden=()):
        self.data, self.run, self.authors = root / "data", root / "run", root / "authors.yaml"
        labelled = {"fan": True, "pump": True, **dict.fromkeys(hidden, False)}
        paths = [path for machine, known in labelled.items() for path in clip_paths(machine, known)]
        for path in map(self.data.joinpath, paths):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        for seed, system in enumerate(("s1", "s2")):
            write_result(self.run, system, paths, seed)
        self.authors.write_text(yaml.safe_dump(AUTHORS, allow_unicode=True))
        self.folder = make_package(self.run, label=LABEL, authors_file=self.authors).with_suffix("")
        (self.folder / "task2" / f"{LABEL}.technical_report.pdf").write_bytes(b"%PDF-1.4\n")


@pytest.fixture(scope="session")
def store(shared) -> Path:
    """An MLflow store of a run that has just begun, as making one takes seconds; for copies and further runs."""
    return shared("store", lambda folder: open_tracker(None, folder, "experiment")) / "mlflow.db"


@pytest.fixture(scope="session")
def model(run):
    return run.model


@pytest.fixture(scope="session")
def case(tmp_path_factory) -> Case:
    return Case(tmp_path_factory.mktemp("case"))
