"""How the cost of what is finished grows with branches, clips and configurations: CPU seconds at n, 2n and 4n."""

import os
import shutil

import pytest

from branches.data.dataset import Dataset
from fusion.tasks import run_here
from orchestrator.fuse.result import fused_system
from orchestrator.ledger.folders import BRANCHES, TABLES, write_record
from orchestrator.overview import overview
from orchestrator.plan import make_plan
from orchestrator.preflight import with_resolved_files
from orchestrator.system import SystemSpec
from orchestrator.training.launch import unfinished
from orchestrator.training.worker import branch_record
from scoring.table import write_table
from tests.benchmarks.growth import grows
from tests.commands import checksums
from tests.tables import make_table

pytestmark = pytest.mark.benchmark


def test_finished_branches_and_their_fusion(dataset, tmp_path):
    clips, made = Dataset.read(dataset), {}
    write_table(make_table(["fan", "pump"], 50, 1000), tmp_path / "table.parquet")
    for n in (200, 400, 800):
        seeds = {"branch": {"backbone": {"path": "tiny"}}, "seeds": list(range(n))}
        system = SystemSpec.model_validate({"name": "many", "subsystems": {"a": {"b": seeds}}})
        system, plan, out = made[n] = system, make_plan([system], clips), tmp_path / str(n)
        for branch in plan.branches:
            folder = out / BRANCHES / branch.branch_id
            (folder / TABLES).mkdir(parents=True)
            shutil.copyfile(tmp_path / "table.parquet", folder / TABLES / f"{branch.scorings[0].name}.parquet")
            known = {"curve": [(step, 1.0) for step in range(50)], "files": checksums(folder), "tables": branch.tables}
            write_record(folder, branch_record(branch, "data").model_copy(update=known))

    def fused(n):
        system, plan, out = made[n]
        assert fused_system(system, clips, plan, out, run_here)["omega"]

    assert grows("finished branches resumed", lambda n: unfinished(made[n][1].branches, made[n][2]), 200) < 800 * 0.002
    assert grows("planned", lambda n: overview([made[n][0]], dataset, made[n][2]), 200) < 800 * 0.005
    first = grows("fused", fused, 200)
    assert grows("fused already", fused, 200) < first / 20


def test_clips_read_already_and_one_backbone_of_many_configurations(tmp_path):
    for n in (2000, 4000, 8000):
        (tmp_path / f"{n}" / "fan" / "train").mkdir(parents=True)
        for i in range(n):
            path = tmp_path / f"{n}" / "fan" / "train" / f"section_00_source_train_normal_{i:04d}_spd_1.wav"
            path.write_bytes(bytes(20_000))
            os.utime(path, (1, 1))
        (tmp_path / f"{n}.pt").write_bytes(bytes(1 << 27))
    first, again = (
        grows(what, lambda n: Dataset.read(tmp_path / f"{n}", tmp_path / f"{n}.parquet", write=True), 2000)
        for what in ("clips read", "clips read already")
    )
    assert again < 0.8 * first

    def resolve(n):
        branch = {"backbone": f"{tmp_path}/{n}.pt"}
        many = {f"c{i}": {"branch": {**branch, "training": {"steps": i + 1}}} for i in range(n // 10)}
        with_resolved_files(SystemSpec.model_validate({"name": "x", "subsystems": {"a": many}}))

    assert grows("configurations, a tenth of so many, with one backbone of 128 MiB", resolve, 2000) < 2
