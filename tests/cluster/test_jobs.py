"""Runs sent to a real Ray cluster on this machine, over its dashboard, as from a laptop."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from mlflow import MlflowClient

from orchestrator.submit import run_command, shipped
from scoring.errors import InputError
from tests.cluster.conftest import SYSTEM, Trial, below, command_of, wait_for
from tests.commands import TUTTI, answers, free_port, parsed, tutti


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


JOB = ["submit", "s1", "--data", "/d a", "--out", "/o", "--address", "http://127.0.0.1:1"]
EVERY_OPTION = [
    *["--backbone", "/b.pt", "--set", "branch.training.steps=3", "--set", "detector=knn", "--json", "--compile"],
    *["--tracking-uri", "http://m:5000", "--storage", "s3://b/r", "--checkpoint-seconds", "0", "--fuse-incomplete"],
    *["--gpus-per-branch", "0.5", "--memory-per-branch", "2", "--cpus-per-branch", "3"],
]


def options_of(words):
    """What `submit` hands on to the run."""
    return {key: value for key, value in parsed(*words).items() if key not in ("systems", "address", "no_follow")}


@pytest.mark.parametrize("options", [[], EVERY_OPTION])
def test_the_command_of_a_job_is_a_run_with_the_same_options(options):
    given = options_of([*JOB, *options])
    assert not options or None not in given.values()
    words = shlex.split(run_command(["s1"], given))
    assert words[:4] == ["python", "-m", "orchestrator", "run"]
    expected = {**given, "systems": ("s1",), "address": "auto"}
    assert parsed(*words[3:]) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "o"], "--out o: give the absolute path"),
        (["--backbone", "BEATs.pt"], "--backbone BEATs.pt: give the absolute path"),
        (["--tracking-uri", "http://me:secret@m:5000"], "--tracking-uri has a password in it"),
        (["--storage", "s3://key:secret@b/r"], "--storage has a password in it"),
        (["--set", "branch.backbone.path=https://me:secret@b/c.pt"], "--set has a password in it"),
    ],
)
def test_what_a_cluster_must_not_be_sent(options, message):
    with pytest.raises(InputError, match=f"^{message}"):
        run_command(["s1"], options_of([*JOB, *options]))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A Ray cluster of one node with the tests' token: ports of its dashboard and for clients, and its process."""
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
        wait_for(lambda: answers(port) and answers(clients))
        yield port, clients, node.pid
    finally:
        node.terminate()
        with suppress(subprocess.TimeoutExpired):
            node.wait(30)
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        node.wait()
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


def ray_job(*arguments):
    command = [str(Path(sys.executable).with_name("ray")), "job", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def submit_and_follow(trial, dashboard):
    """The command and its job, whose log has begun."""
    command = [TUTTI, *map(str, submitted(trial, "--address", dashboard, "--checkpoint-seconds", 0))]
    following = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    job_id = following.stdout.readline().strip()
    assert f"`ray job stop {job_id} --address {dashboard}` stops it" in following.stderr.readline()
    assert any("of 3 branches" in line for line in following.stderr)
    return following, job_id


@pytest.mark.xdist_group("head")
@pytest.mark.faults
@pytest.mark.slow
def test_submit_follow_and_stop(undisturbed, trial, dashboard, tmp_path):
    long = Trial(trial.data, tmp_path / "long")
    long.system = tmp_path / "long.yaml"
    long.system.write_text(SYSTEM.replace("steps: 400", "steps: 100000").replace("name: small", "name: long"))
    following, job_id = submit_and_follow(long, dashboard)
    try:
        wait_for(long.training)
        following.send_signal(signal.SIGINT)
        assert f"the job goes on; `ray job logs -f {job_id}" in following.communicate(timeout=60)[1]
        assert following.returncode == 130
    finally:
        stopped = ray_job("stop", job_id, "--address", dashboard)
    assert "was stopped" in stopped.stderr + stopped.stdout
    client = MlflowClient(f"sqlite:///{long.out / 'mlflow.db'}")
    experiments = [e.experiment_id for e in client.search_experiments()]
    statuses = {run.info.status for run in client.search_runs(experiments)}
    assert statuses - {"FINISHED"} == {"KILLED"}  # the baseline is finished soon

    run = tutti(*submitted(trial, "--address", dashboard), timeout=400)
    assert run.returncode == 0, run.stderr
    assert "0 of 3 branches finished" in run.stderr
    assert trial.tables() == undisturbed.tables()
    again = ray_job("logs", "-f", run.stdout.strip(), "--address", dashboard)
    assert again.returncode == 0
    assert "0 of 3 branches finished" in again.stdout

    wrong = tutti("submit", "demo", "--data", "/none", "--out", trial.out, "--address", dashboard)
    assert wrong.returncode == 2  # of the command that ran there
    assert "Error: /none: no such folder" in wrong.stderr


@pytest.mark.xdist_group("head")
@pytest.mark.faults
@pytest.mark.slow
def test_a_wrong_token_then_a_dashboard_that_dies(trial, head, dashboard, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", 64 * "f")
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # which would take precedence with Ray
        refused = tutti(*submitted(trial, "--address", dashboard))
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "takes no job: " in line
    assert "RAY_AUTH_TOKEN" in line

    following, job_id = submit_and_follow(trial, dashboard)
    (server,) = [process for process in below(head[2]) if "dashboard/dashboard.py" in command_of(process)]
    server.kill()
    errors = following.communicate(timeout=60)[1]
    assert following.returncode == 2
    assert f"Error: the log of {job_id} breaks off (" in errors.splitlines()[-1]
    assert f"`ray job logs -f {job_id}` takes it up" in errors.splitlines()[-1]
