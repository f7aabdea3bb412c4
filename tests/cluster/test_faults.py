"""Faults of docs/faults.md, done to real runs; the score tables must be those of a run that nothing disturbed."""

import os
import re
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.ledger.folders import BRANCHES, RECORD
from orchestrator.ledger.storage import DRIVER
from tests.cluster.conftest import (
    SOCKETS_STAY_OPEN,
    Trial,
    background,
    below,
    branches_of,
    finish,
    ray_cluster,
    step_of,
    wait_for,
)
from tests.commands import answers, free_port

pytestmark = [pytest.mark.slow, pytest.mark.faults, SOCKETS_STAY_OPEN]
FINISHED = [*[("branch", "FINISHED")] * 3, ("fusion", "FINISHED"), ("run", "FINISHED")]  # one is the baseline's


def test_a_killed_worker_a_branch_out_of_memory_and_a_second_driver(undisturbed, trial):
    run = trial.start()
    wait_for(lambda: trial.training(branches=2))
    below(run.pid, "ImplicitFunc")[0].kill()  # a worker of Ray's, in which a run trains branches
    wait_for(lambda: len(branches_of(run)) == 1)
    branches_of(run)[0].kill()  # as the kernel does
    second = trial.again()
    code, errors = finish(run)
    assert second.returncode == 2
    assert "another run is writing to this folder" in second.stderr
    assert code == 0, errors
    assert errors.count(": started") == 5  # three branches, two of them twice
    assert trial.tables() == undisturbed.tables()
    assert trial.statuses() == FINISHED
    token = os.environ["RAY_AUTH_TOKEN"]
    assert token not in errors
    assert not [p for p in trial.out.rglob("*") if p.is_file() and token.encode() in p.read_bytes()]


def test_ctrl_c_then_sigterm_then_damaged_checkpoints_then_a_damaged_ledger(undisturbed, trial):
    for sent, begun in ((signal.SIGINT, lambda run: trial.training()), (signal.SIGTERM, branches_of)):
        run = trial.start()
        wait_for(lambda begun=begun, run=run: begun(run))
        os.killpg(run.pid, sent)  # Ray's own processes get it, too
        code, errors = finish(run)
        assert code == 130, errors
        assert "Traceback" not in errors
        assert {status for _, status in trial.statuses()} == {"KILLED"}
        assert not list((trial.out / BRANCHES).rglob("*.parquet"))

    first, *_ = checkpoints = trial.checkpoints()
    assert max(map(step_of, checkpoints)) > 10
    first.write_bytes(first.read_bytes()[:1000])
    first.with_suffix(".123.tmp").write_bytes(b"half")
    assert trial.again().returncode == 0
    assert trial.tables() == undisturbed.tables()

    record, other, _ = sorted((trial.out / BRANCHES).glob(f"*/{RECORD}"))
    record.write_bytes(record.read_bytes()[:100])
    (table,) = other.parent.rglob("*.parquet")
    damaged = bytearray(table.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    table.write_bytes(damaged)
    repaired = trial.again()
    assert repaired.returncode == 0
    assert "1 of 3 branches finished" in repaired.stderr
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
            code, errors = finish(run)
    assert code == 0, errors
    assert errors.count(": started") >= 3
    assert trial.tables() == undisturbed.tables()


def mlflow_server(folder, port):
    """An MLflow server that has what an earlier one with this folder had."""
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", folder / "artifacts", "--workers", 1, "--host", "127.0.0.1", "--port", port]
    return background(folder / "server.log", command, lambda: answers(port))


def test_an_mlflow_server_is_gone_to_the_end(undisturbed, trial, tmp_path):
    port = free_port()
    to_it = ("--tracking-uri", uri := f"http://127.0.0.1:{port}")
    with mlflow_server(tmp_path, port):
        run = trial.start(*to_it)
        wait_for(trial.training)
    code, errors = finish(run)
    assert code == 0, errors
    assert re.search("[45] results have not reached MLflow", errors)
    assert trial.tables() == undisturbed.tables()
    away = trial.again(*to_it)
    assert away.returncode == 2
    assert "no MLflow server answers" in away.stderr
    with mlflow_server(tmp_path, port):
        for _ in range(2):  # the second finds nothing to send
            again = trial.again(*to_it)
            assert again.returncode == 0, again.stderr
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
        code, errors = finish(run)
        assert code in (1, 2), errors
        assert "Traceback" not in errors
        assert "No space left" in errors
        filler.unlink()
        again = trial.again()
        assert again.returncode == 0, again.stderr
        assert trial.tables() == undisturbed.tables()
        assert trial.statuses() == FINISHED
    finally:
        subprocess.run(["umount", "--lazy", trial.out], check=True)


@contextmanager
def ray_node(folder, hidden, *options):
    """A node of Ray, to which these folders are empty."""
    mounts = " && ".join(["true", *(f"mount -t tmpfs tmpfs {path}" for path in hidden)])
    ray = [Path(sys.executable).with_name("ray"), "start", "--block", "--num-cpus=1", f"--temp-dir={folder}"]
    ray += ["--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}", *options]
    command, log = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *ray], Path(f"{folder}.log")
    try:
        with background(log, command, lambda: "Ray runtime started" in log.read_text()):
            yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        log.unlink()


def test_nodes_share_no_file_system(undisturbed, trial, tmp_path):
    """The second node sees neither the data nor what the first one writes."""
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a node cannot be given a file system of its own here")
    trial.out.mkdir()
    port, stored = free_port(), tmp_path / "storage"
    short = f"/tmp/tutti-{os.getpid()}"  # the path of a socket has at most 107 characters
    head = ["--head", f"--port={port}", "--include-dashboard=false", f"--dashboard-port={free_port()}"]
    head += [f"--ray-client-server-port={free_port()}"]
    hidden = [trial.out, trial.data]
    with ray_node(f"{short}a", [], *head), ray_node(f"{short}b", hidden, f"--address=127.0.0.1:{port}"):
        options = ["--address", f"127.0.0.1:{port}", "--storage", stored.as_uri()]
        run = trial.start(*options)
        try:
            wait_for((stored / DRIVER).exists)
            elsewhere = Trial(trial.data, tmp_path / "elsewhere").again(*options)
        finally:
            code, errors = finish(run)
    assert elsewhere.returncode == 2
    assert "another run is writing there" in elsewhere.stderr
    assert code == 0, errors
    assert errors.count(": started") == 3  # all branches at the first try
    assert trial.tables() == undisturbed.tables()
    assert len(list(stored.glob(f"{BRANCHES}/*/{RECORD}"))) == 3
    assert (stored / "report.html").read_bytes() == (trial.out / "report.html").read_bytes()
    assert not list(stored.glob("checkpoints/*/*"))
