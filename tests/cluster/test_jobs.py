"""Runs sent to a real Ray cluster on this machine, over its dashboard, as from a laptop."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.submit import run_command, shipped
from scoring.errors import InputError
from tests.cluster.conftest import SYSTEM, Trial, wait_for
from tests.commands import TUTTI, answers, free_port, tutti


def test_what_is_shipped_is_small_and_runs_alone(tmp_path):
    (tmp_path / "small.yaml").write_text(SYSTEM)
    with shipped([str(tmp_path / "small.yaml"), "demo"]) as (folder, names):
        assert names[1] == "demo"
        assert (folder / names[0]).read_text() == SYSTEM
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 4 << 20
        code = "import orchestrator, importlib.metadata as m; print(orchestrator.__file__, m.version('tutti-asd'))"
        printed = subprocess.run([sys.executable, "-c", code], cwd=folder, env={}, capture_output=True, text=True)
        assert printed.stdout.startswith(str(folder)), printed.stderr
    assert not folder.exists()


def test_the_command_of_a_job():
    options = {"data": Path("/d a"), "out": Path("/o"), "as_json": True, "fuse_incomplete": False, "backbone": None}
    expected = "python -m orchestrator run s1 --address auto --data '/d a' --out /o --json"
    assert run_command(["s1"], options) == expected
    with pytest.raises(InputError, match="--out o: give the absolute path"):
        run_command(["s1"], {**options, "out": Path("o")})


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A Ray cluster of one node with the tests' token: ports of its dashboard and for clients."""
    port, clients = free_port(), free_port()
    # Short, since the path of a Unix socket has at most 107 characters.
    folder = Path(f"/tmp/tutti-{os.getpid()}")
    command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
    command += [f"--port={free_port()}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--dashboard-agent-listen-port={free_port()}", f"--ray-client-server-port={clients}"]
    command += [f"--temp-dir={folder}"]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    with open(tmp_path_factory.mktemp("ray") / "log", "wb") as log:
        node = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        wait_for(
            lambda: tutti("follow", "none", "--address", f"http://127.0.0.1:{port}").stderr.endswith("no job none\n")
        )
        wait_for(lambda: answers(clients))  # its server starts beside the dashboard
        yield port, clients
    finally:
        node.terminate()
        with suppress(subprocess.TimeoutExpired):
            node.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture(scope="module")
def dashboard(head):
    return f"http://127.0.0.1:{head[0]}"


@pytest.mark.xdist_group("head")  # two heads would give their clients the same ports
@pytest.mark.faults
@pytest.mark.slow
def test_a_driver_outside_the_cluster(undisturbed, trial, head):
    run = trial.again("--address", f"ray://127.0.0.1:{head[1]}")
    assert run.returncode == 0, run.stderr
    assert trial.tables() == undisturbed.tables()


def submitted(trial, *options):
    return ["submit", trial.system, "--data", trial.data, "--out", trial.out, *options]


@pytest.mark.xdist_group("head")
@pytest.mark.faults
@pytest.mark.slow
def test_submit_follow_and_cancel(undisturbed, trial, dashboard, tmp_path):
    long = Trial(trial.data, tmp_path / "long")
    long.system = tmp_path / "long.yaml"
    long.system.write_text(SYSTEM.replace("steps: 400", "steps: 100000").replace("name: small", "name: long"))
    try:
        started = tutti(*submitted(long, "--address", dashboard, "--no-follow", "--checkpoint-seconds", 0), timeout=400)
        assert started.returncode == 0, started.stderr
        job_id = started.stdout.strip()
        wait_for(long.training)
        following = subprocess.Popen(
            [TUTTI, "follow", job_id, "--address", dashboard], stderr=subprocess.PIPE, text=True
        )
        assert any("2 branches" in line for line in following.stderr)
        following.send_signal(signal.SIGINT)
        assert "still running" in following.communicate(timeout=60)[1]
        assert following.returncode == 130
    finally:
        cancelled = tutti("cancel", started.stdout.strip(), "--address", dashboard, timeout=400)
    assert cancelled.stdout == f"{job_id}: STOPPED\n"
    client = MlflowClient(f"sqlite:///{long.out / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    runs = [r for r in client.search_runs(experiments) if r.data.tags["role"] != "baseline"]
    assert {r.info.status for r in runs} == {"KILLED"}

    run = tutti(*submitted(trial, "--address", dashboard), timeout=400)
    assert run.returncode == 0, run.stderr
    assert "0 of 2 branches finished" in run.stderr
    assert trial.tables() == undisturbed.tables()
    again = tutti("follow", run.stdout.split()[0], "--address", dashboard)
    assert again.returncode == 0
    assert "0 of 2 branches finished" in again.stderr

    wrong = tutti("submit", "demo", "--data", "/none", "--out", trial.out, "--address", dashboard)
    assert wrong.returncode == 2  # of the command that ran there
    assert "Error: /none: no such folder" in wrong.stderr
