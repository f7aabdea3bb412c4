"""Faults that are really done to real runs; the score tables must be those of a run that nothing disturbed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.ledger.folders import RECORD
from orchestrator.ledger.storage import every
from orchestrator.tracking.outbox import POLL_SECONDS, Outbox
from orchestrator.tracking.tracker import open_tracker
from tests.cluster.conftest import branches_of, step_of, wait_for, workers_of
from tests.commands import answers, free_port

pytestmark = pytest.mark.slow


def statuses(uri):
    """Status of every run in a store by role and name."""
    client = MlflowClient(uri)
    experiments = [e.experiment_id for e in client.search_experiments() if e.name != "Default"]
    return {(r.data.tags["role"], r.info.run_name): r.info.status for r in client.search_runs(experiments)}


def local(trial):
    return f"sqlite:///{trial.out / 'mlflow.db'}"


def finish(process):
    """Exit code and stderr of a run that was started."""
    try:
        _, errors = process.communicate(timeout=400)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, errors


@pytest.mark.faults
def test_a_killed_worker_a_branch_out_of_memory_and_a_second_driver(undisturbed, trial):
    run = trial.start()
    wait_for(lambda: trial.training(branches=2))
    workers_of(run)[0].kill()
    wait_for(lambda: len(branches_of(run)) == 1)
    with little_memory() as starve:
        (branch,) = branches_of(run)
        kills = starve(branch.pid) if starve else branch.kill()
        second = trial.again()
        code, errors = finish(run)
        assert kills is None or kills() == 1
    assert second.returncode == 2
    assert "another run is writing to this folder" in second.stderr
    assert code == 0, errors
    assert errors.count(": started") == 5  # three branches, two of them twice
    assert trial.tables() == undisturbed.tables()
    assert set(statuses(local(trial)).values()) == {"FINISHED"}
    token = os.environ["RAY_AUTH_TOKEN"]
    assert token not in errors
    for path in trial.out.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), path


@contextmanager
def little_memory():
    """A function that leaves a process no more memory, so that the kernel kills it; None where that is forbidden."""
    group = Path("/sys/fs/cgroup/memory") / f"tutti-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text("1M")
    except OSError:
        yield None
        return

    def starve(pid):
        (group / "cgroup.procs").write_text(str(pid))
        return lambda: int((group / "memory.oom_control").read_text().split()[-1])

    try:
        yield starve
    finally:
        group.rmdir()


@pytest.mark.faults
def test_ctrl_c_then_sigterm_then_damaged_checkpoints_then_a_damaged_ledger(undisturbed, trial):
    for sent, begun in ((signal.SIGINT, lambda run: trial.training()), (signal.SIGTERM, branches_of)):
        run = trial.start()
        wait_for(lambda begun=begun, run=run: begun(run))
        os.killpg(run.pid, sent)  # Ray's own processes get it, too
        code, errors = finish(run)
        assert code == 130, errors
        assert "Traceback" not in errors
        stopped = {status for (_, _), status in statuses(local(trial)).items()}
        assert stopped == {"KILLED"}
        assert not list((trial.out / "branches").rglob("*.parquet"))

    checkpoints = sorted((trial.out / "checkpoints").rglob("*.pt"))
    assert max(map(step_of, checkpoints)) > 10
    checkpoints[0].write_bytes(checkpoints[0].read_bytes()[:1000])
    checkpoints[0].with_suffix(".123.tmp").write_bytes(b"half")
    assert trial.again().returncode == 0
    assert trial.tables() == undisturbed.tables()

    records = sorted((trial.out / "branches").glob(f"*/{RECORD}"))
    records[0].write_bytes(records[0].read_bytes()[:100])
    (table,) = records[1].parent.rglob("*.parquet")
    damaged = bytearray(table.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    table.write_bytes(damaged)
    repaired = trial.again()
    assert repaired.returncode == 0
    assert "1 of 3 branches finished" in repaired.stderr
    assert trial.tables() == undisturbed.tables()
    assert not list((trial.out / "checkpoints").rglob("*.*"))


@pytest.mark.faults
def test_a_node_is_lost(undisturbed, trial):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        node = cluster.add_node(num_cpus=1)
        run = trial.start("--address", cluster.address)
        try:
            wait_for(lambda: trial.training(branches=2))
            cluster.remove_node(node, allow_graceful=False)
        finally:
            code, errors = finish(run)
    finally:
        cluster.shutdown()
    assert code == 0, errors
    assert errors.count(": started") >= 3
    assert trial.tables() == undisturbed.tables()


class Server:
    """An MLflow server that can go away and come back."""

    def __init__(self, folder):
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        store = f"sqlite:///{self.folder / 'server.db'}"
        command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store, "--workers", "1"]
        command += ["--artifacts-destination", str(self.folder / "artifacts")]
        command += ["--host", "127.0.0.1", "--port", str(self.port)]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        wait_for(lambda: answers(self.port))

    def stop(self):
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextmanager
def serving(folder):
    server = Server(folder)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.mark.faults
def test_an_mlflow_server_goes_away_and_comes_back(undisturbed, trial, tmp_path, caplog):
    shutil.copytree(undisturbed.out, trial.out)
    with serving(tmp_path) as server:
        tracker = open_tracker(server.uri, trial.out, "small on data")
        server.stop()
        outbox = Outbox(tracker, trial.out)
        with every(POLL_SECONDS, outbox.send):
            wait_for(lambda: "results are kept" in caplog.text)
            server.start()
            wait_for(lambda: sorted(statuses(server.uri).values()) == ["FINISHED"] * 4 + ["RUNNING"])
        assert outbox.close("FINISHED") == 0
        found = statuses(server.uri)
        assert sorted(role for role, _ in found) == ["branch", "branch", "branch", "fusion", "run"]
        assert set(found.values()) == {"FINISHED"}


@pytest.mark.faults
def test_an_mlflow_server_is_gone_to_the_end(undisturbed, trial, tmp_path):
    with serving(tmp_path) as server:
        run = trial.start("--tracking-uri", server.uri)
        wait_for(trial.training)
        server.stop()
        code, errors = finish(run)
        assert code == 0, errors
        assert re.search("[45] results have not reached MLflow", errors)
        assert trial.tables() == undisturbed.tables()
        away = trial.again("--tracking-uri", server.uri)
        assert away.returncode == 2
        assert "no MLflow server answers" in away.stderr
        server.start()
        for _ in range(2):  # the second finds nothing to send
            again = trial.again("--tracking-uri", server.uri)
            assert again.returncode == 0, again.stderr
            found = statuses(server.uri)
            assert len(found) == 5
            assert set(found.values()) == {"FINISHED"}


@contextmanager
def small_disk(folder, size):
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.mark.faults
def test_a_full_disk(undisturbed, trial):
    with small_disk(trial.out, "60m"):
        run = trial.start()
        wait_for(trial.training)
        filler = trial.out / "filler"
        with suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        code, errors = finish(run)
        assert code in (1, 2), errors
        assert "Traceback" not in errors
        assert "No space left" in errors
        filler.unlink()
        again = trial.again()
        assert again.returncode == 0, again.stderr
        assert trial.tables() == undisturbed.tables()
        assert set(statuses(local(trial)).values()) == {"FINISHED"}
