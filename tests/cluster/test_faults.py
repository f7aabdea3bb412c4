"""Faults of docs/faults.md, and jobs on a real cluster, whose score tables are those of an undisturbed run."""

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from orchestrator.ledger.folders import BRANCHES, RECORD
from orchestrator.ledger.storage import DRIVER
from tests.cluster.conftest import Trial, background, below, branches_of, finish, ray_cluster, ray_node, wait_for
from tests.commands import TUTTI, answers, free_port, tutti

pytestmark = [pytest.mark.slow, pytest.mark.faults]
on_a_head = pytest.mark.xdist_group("head")  # two would give their clients the same ports
FINISHED = [*[("branch", "FINISHED")] * 3, ("fusion", "FINISHED"), ("run", "FINISHED")]  # one is the baseline's


def test_a_killed_worker_a_branch_out_of_memory_and_a_second_driver(undisturbed, trial):
    run = trial.start()
    wait_for(lambda: trial.training(branches=2))
    below(run.pid, "ImplicitFunc")[0].kill()  # a worker of Ray's, in which a run trains branches
    wait_for(lambda: len(branches_of(run)) == 1)
    branches_of(run)[0].kill()  # as the kernel does
    assert "another run is writing to this folder" in finish(trial.start(), 2)
    errors = finish(run)
    assert errors.count(": started") == 5  # three branches, two of them twice
    assert trial.tables() == undisturbed.tables()
    assert trial.statuses() == FINISHED
    token = os.environ["RAY_AUTH_TOKEN"]
    assert token not in errors
    assert not [p for p in trial.out.rglob("*") if p.is_file() and token.encode() in p.read_bytes()]


def test_ctrl_c_then_sigterm_then_damaged_checkpoints_then_a_damaged_ledger(undisturbed, trial):
    moments = {signal.SIGINT: lambda run: trial.training(), signal.SIGTERM: branches_of, signal.SIGHUP: branches_of}
    for sent, begun in moments.items():
        run = trial.start()
        wait_for(lambda begun=begun, run=run: begun(run))
        os.killpg(run.pid, sent)  # Ray's own processes get it, too
        assert "Traceback" not in finish(run, 130)
        assert {status for _, status in trial.statuses()} == {"KILLED"}
        assert not list((trial.out / BRANCHES).rglob("*.parquet"))
    assert trial.training()
    first, *_ = trial.checkpoints()
    first.write_bytes(first.read_bytes()[:1000])
    first.with_suffix(".123.tmp").write_bytes(b"half")
    finish(trial.start())
    assert trial.tables() == undisturbed.tables()
    record, other, _ = sorted((trial.out / BRANCHES).glob(f"*/{RECORD}"))
    record.write_bytes(record.read_bytes()[:100])
    (table,) = other.parent.rglob("*.parquet")
    damaged = bytearray(table.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    table.write_bytes(damaged)
    assert "1 of 3 branches finished" in finish(trial.start())
    assert trial.tables() == undisturbed.tables()
    assert not list((trial.out / "checkpoints").rglob("*.*"))


def test_a_node_is_lost(undisturbed, trial):
    with ray_cluster(num_cpus=1) as cluster:
        node = cluster.add_node(num_cpus=1)
        run = trial.start("--address", cluster.address)
        try:
            wait_for(lambda: trial.training(branches=2))
            cluster.remove_node(node, allow_graceful=False)
        finally:
            errors = finish(run)
    assert errors.count(": started") >= 3
    assert trial.tables() == undisturbed.tables()


def mlflow_server(folder, port):
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", folder / "artifacts", "--workers", 1, "--host", "127.0.0.1", "--port", port]
    return background(folder / "server.log", command, lambda: answers(port))


def test_an_mlflow_server_is_gone_to_the_end(undisturbed, trial, tmp_path):
    port = free_port()
    to_it = ("--tracking-uri", uri := f"http://127.0.0.1:{port}")
    with mlflow_server(tmp_path, port):
        run = trial.start(*to_it)
        wait_for(trial.training)
    assert re.search("not in MLflow yet: [45] results", finish(run))
    assert trial.tables() == undisturbed.tables()
    assert "no MLflow server answers" in finish(trial.start(*to_it), 2)
    with mlflow_server(tmp_path, port):
        for _ in range(2):  # the second finds nothing to send
            finish(trial.start(*to_it))
            assert trial.statuses(uri) == FINISHED


def test_a_full_disk(undisturbed, trial):
    trial.out.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", trial.out]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not permitted here")
    try:
        run, filler = trial.start(), trial.out / "filler"
        wait_for(trial.training)
        with suppress(OSError), open(filler, "wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 16))
        errors = finish(run, 1, 2)
        assert "Traceback" not in errors
        assert "No space left" in errors
        filler.unlink()
        finish(trial.start())
        assert trial.tables() == undisturbed.tables()
        assert trial.statuses() == FINISHED
    finally:
        subprocess.run(["umount", "--lazy", trial.out], check=True)


def test_nodes_share_no_file_system(undisturbed, trial, tmp_path):
    """The second node sees neither the data nor what the first one writes: to it these folders are empty."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a node cannot be given a file system of its own here")
    trial.out.mkdir()
    port, stored = free_port(), tmp_path / "storage"
    here = ["--num-cpus=1", "--node-ip-address=127.0.0.1"]
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--dashboard-port={free_port()}"]
    head += [f"--ray-client-server-port={free_port()}"]
    hidden = " && ".join(f"mount -t tmpfs tmpfs {path}" for path in (trial.out, trial.data))
    apart = ["unshare", "--mount", "sh", "-c", f'{hidden} && exec "$@"', "sh"]
    with ray_node("a", *here, *head), ray_node("b", *here, f"--address=127.0.0.1:{port}", within=apart):
        options = ["--address", f"127.0.0.1:{port}", "--storage", stored.as_uri()]
        run = trial.start(*options)
        try:
            wait_for((stored / DRIVER).exists)
            elsewhere = Trial(trial.data, tmp_path / "elsewhere").start(*options)
            assert "another run is writing there" in finish(elsewhere, 2)
        finally:
            errors = finish(run)
    assert errors.count(": started") == 3  # all branches at the first try
    assert trial.tables() == undisturbed.tables()
    assert len(list(stored.glob(f"{BRANCHES}/*/{RECORD}"))) == 3
    assert (stored / "report.html").read_bytes() == (trial.out / "report.html").read_bytes()
    assert not list(stored.glob("checkpoints/*/*"))


@pytest.fixture(scope="module")
def head():
    port, clients = free_port(), free_port()
    options = [f"--ray-client-server-port={clients}", "--dashboard-host=127.0.0.1", f"--dashboard-port={port}"]
    path = ["env", f"PATH={Path(sys.executable).parent}:{os.environ['PATH']}"]
    with ray_node("", "--head", "--num-cpus=2", f"--port={free_port()}", *options, within=path) as node:
        wait_for(lambda: answers(port) and answers(clients))
        yield f"http://127.0.0.1:{port}", f"ray://127.0.0.1:{clients}", node.pid


def submitted(trial, dashboard):
    return ["submit", *trial.arguments[1:], "--address", dashboard]


def ray_job(*arguments):
    command = [Path(TUTTI).with_name("ray"), "job", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400)


def submit_and_follow(trial, dashboard):
    command, pipe = [TUTTI, *map(str, submitted(trial, dashboard))], subprocess.PIPE
    following = subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True)
    job_id = following.stdout.readline().strip()
    assert f"`ray job stop {job_id} --address {dashboard}` stops it" in following.stderr.readline()
    assert any("of 3 branches" in line for line in following.stderr)
    return following, job_id


@on_a_head
def test_submit_follow_and_stop_or_drive_from_outside(undisturbed, trial, head, tmp_path):
    dashboard, clients, _ = head
    endless = trial.system.read_text().replace("steps: 400", "steps: 100000").replace("name: small", "name: long")
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
    outside = Trial(trial.data, tmp_path / "outside")
    finish(outside.start("--address", clients))
    run = tutti(*submitted(trial, dashboard), timeout=400)
    assert run.returncode == 0, run.stderr
    assert outside.tables() == trial.tables() == undisturbed.tables()
    again = ray_job("logs", "-f", run.stdout.strip(), "--address", dashboard)
    assert again.returncode == 0
    assert all("0 of 3 branches finished" in told for told in (run.stderr, again.stdout))
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
        outside = finish(trial.start("--address", clients), 2)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "takes no job: " in line
    assert outside.count("trying once more") == 1
    last = outside.splitlines()[-1]
    assert last.startswith(f"Error: no connection to Ray at {clients} (")
    assert all("RAY_AUTH_TOKEN" in told for told in (line, last))
    following, job_id = submit_and_follow(trial, dashboard)
    (server,) = below(node, "dashboard/dashboard.py")
    server.kill()
    last = following.communicate(timeout=60)[1].splitlines()[-1]
    assert following.returncode == 2
    assert f"Error: the log of {job_id} breaks off (" in last
    assert f"`ray job logs -f {job_id}` takes it up" in last
