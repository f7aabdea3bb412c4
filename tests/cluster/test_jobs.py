"""Runs sent to a real Ray cluster on this machine, over its dashboard, as from a laptop."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.jobs import submit_job
from scoring.errors import InputError
from tests.cluster.conftest import SYSTEM, Trial, background, below, wait_for
from tests.commands import TUTTI, answers, free_port, tutti

RAY = str(Path(sys.executable).with_name("ray"))


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:8265", "^--address 127.0.0.1:8265: give the dashboard's"),
        ("ray://127.0.0.1:1", "^--address ray://127.0.0.1:1: give the dashboard's"),
        ("http://127.0.0.1:1", "^no Ray dashboard answers at http://127.0.0.1:1 "),
    ],
)
def test_an_address_that_is_no_dashboards(address, message, tmp_path):
    with pytest.raises(InputError, match=message):
        submit_job(address, "true", tmp_path)


def on_a_head(test):
    """Minutes; and two heads would give their clients the same ports."""
    return pytest.mark.slow(pytest.mark.faults(pytest.mark.xdist_group("head")(test)))


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """A Ray cluster of one node with the tests' token: its dashboard, its port for clients, and its process."""
    port, clients = free_port(), free_port()
    # Short, since the path of a Unix socket has at most 107 characters.
    folder = Path(f"/tmp/tutti-{os.getpid()}")
    command = ["env", f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}", RAY, "start", "--head", "--block"]
    command += ["--num-cpus=2", f"--temp-dir={folder}", f"--port={free_port()}", f"--ray-client-server-port={clients}"]
    command += ["--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]
    log = tmp_path_factory.mktemp("ray") / "log"
    try:
        with background(log, command, lambda: answers(port) and answers(clients)) as node:
            yield f"http://127.0.0.1:{port}", clients, node.pid
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@on_a_head
def test_a_driver_outside_the_cluster(undisturbed, trial, head):
    run = trial.again("--address", f"ray://127.0.0.1:{head[1]}")
    assert run.returncode == 0, run.stderr
    assert trial.tables() == undisturbed.tables()


def submitted(trial, dashboard):
    return ["submit", *trial.arguments[1:], "--address", dashboard]


def ray_job(*arguments):
    return subprocess.run([RAY, "job", *arguments], capture_output=True, text=True, timeout=400)


def submit_and_follow(trial, dashboard):
    """The command and its job, whose log has begun."""
    command, pipe = [TUTTI, *map(str, submitted(trial, dashboard))], subprocess.PIPE
    following = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    job_id = following.stdout.readline().strip()
    assert f"`ray job stop {job_id} --address {dashboard}` stops it" in following.stderr.readline()
    assert any("of 3 branches" in line for line in following.stderr)
    return following, job_id


@on_a_head
def test_submit_follow_and_stop(undisturbed, trial, head, tmp_path):
    dashboard, *_ = head
    endless = SYSTEM.replace("steps: 400", "steps: 100000").replace("name: small", "name: long")
    long = Trial(trial.data, tmp_path / "long", endless)
    following, job_id = submit_and_follow(long, dashboard)
    try:
        wait_for(long.training)
        following.send_signal(signal.SIGINT)
        assert f"the job goes on; `ray job logs -f {job_id}" in following.communicate(timeout=60)[1]
        assert following.returncode == 130
    finally:
        stopped = ray_job("stop", job_id, "--address", dashboard)
    assert "was stopped" in stopped.stderr + stopped.stdout
    assert {status for _, status in long.statuses()} - {"FINISHED"} == {"KILLED"}  # the baseline is finished soon

    run = tutti(*submitted(trial, dashboard), timeout=400)
    assert run.returncode == 0, run.stderr
    assert "0 of 3 branches finished" in run.stderr
    assert trial.tables() == undisturbed.tables()
    again = ray_job("logs", "-f", run.stdout.strip(), "--address", dashboard)
    assert again.returncode == 0
    assert "0 of 3 branches finished" in again.stdout

    wrong = tutti("submit", "demo", "--data", "/none", "--out", trial.out, "--address", dashboard)
    assert wrong.returncode == 2  # of the command that ran there
    assert "Error: /none: no such folder" in wrong.stderr


@on_a_head
def test_a_wrong_token_then_a_dashboard_that_dies(trial, head, monkeypatch):
    dashboard, clients, node = head
    with monkeypatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", 64 * "f")
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # which would take precedence with Ray
        refused = tutti(*submitted(trial, dashboard))
        patch.delenv("RAY_ADDRESS")
        outside = trial.again("--address", f"ray://127.0.0.1:{clients}")
    assert refused.returncode == outside.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "takes no job: " in line
    assert "RAY_AUTH_TOKEN" in line
    assert outside.stderr.count("trying once more") == 1
    last = outside.stderr.splitlines()[-1]
    assert last.startswith(f"Error: no connection to Ray at ray://127.0.0.1:{clients} (")
    assert "RAY_AUTH_TOKEN" in last

    following, job_id = submit_and_follow(trial, dashboard)
    (server,) = below(node, "dashboard/dashboard.py")
    server.kill()
    errors = following.communicate(timeout=60)[1]
    assert following.returncode == 2
    assert f"Error: the log of {job_id} breaks off (" in errors.splitlines()[-1]
    assert f"`ray job logs -f {job_id}` takes it up" in errors.splitlines()[-1]
