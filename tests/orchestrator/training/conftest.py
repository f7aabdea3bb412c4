import shutil

import pytest

from branches.data.dataset import Dataset
from branches.data.synthetic import SyntheticSize, write_dataset
from orchestrator.ledger.folders import BRANCHES, TABLES, is_finished, read_record
from orchestrator.plan import make_plan, versions
from orchestrator.system import SystemSpec
from orchestrator.training.job import Job
from orchestrator.training.worker import train_and_score
from scoring.table import read_table


class Bench:
    def __init__(self, data, out, storage=None):
        self.data, self.out, self.storage, self.configurations = data, out, storage, [{}]
        self.branch = {"embedding_dim": 8, "strategy": "head", "pooling": "mean"}
        self.branch["training"] = {"steps": 2, "crop_seconds": 0.5}

    dataset = property(lambda self: Dataset.read(self.data))
    folder = property(lambda self: self.out / BRANCHES / self.plan.branches[0].branch_id)
    record = property(lambda self: read_record(self.folder))
    tables = property(lambda self: {path.stem: read_table(path) for path in (self.folder / TABLES).iterdir()})

    @property
    def plan(self):
        named = {f"b{i}": {"branch": self.branch, **c} for i, c in enumerate(self.configurations)}
        return make_plan([SystemSpec.model_validate({"name": "s", "subsystems": {"a": named}})], self.dataset)

    def job(self, **options):
        dataset, branch = self.dataset, self.plan.branches[0]
        known = {"data": self.data, "out": self.out, "storage": self.storage, "gpus_per_branch": 0.0}
        known |= {"fingerprint": dataset.fingerprint, "training": dataset.training_fingerprint()}
        known |= {"noise": dataset.noise, "frozen": tuple(branch.spec.frozen_inputs(branch.embeddings))}
        return Job(**{**known, "versions": versions(), **options})

    def bring(self, **options):
        """Make the tables; names of the trainings that this took."""
        branch, job, stages = self.plan.branches[0], self.job(**options), []
        assert not is_finished(self.out, branch.branch_id, branch.tables)
        self.omega = train_and_score(branch, job, self.dataset.index, lambda stage, *_: stages.append(stage))
        assert is_finished(self.out, branch.branch_id, branch.tables)
        assert list(job.checkpoints.iterdir()) == []
        return {*stages}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    write_dataset(folder / "data", SyntheticSize(4, 2, 2, 1.0), machines=["rotor", "pump"])
    bench = Bench(folder / "data", folder / "out")
    assert bench.bring() == {"branch"}
    return bench


@pytest.fixture
def bench(trained, tmp_path):
    return Bench(*(shutil.copytree(folder, tmp_path / folder.name) for folder in (trained.data, trained.out)))
