"""A run on nodes that share no file system: the second one sees neither the data nor what the first one writes."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from orchestrator.ledger.folders import BRANCHES, RECORD
from orchestrator.ledger.storage import DRIVER
from tests.cluster.conftest import Trial, wait_for
from tests.cluster.test_faults import finish
from tests.commands import free_port


@contextmanager
def ray_node(folder, hidden, *options):
    """A node of Ray, to which other file systems than its own are empty."""
    mounts = " && ".join(f"mount -t tmpfs tmpfs {path}" for path in hidden) or "true"
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--block", "--num-cpus=1", f"--temp-dir={folder}"]
    ray += ["--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}", *options]
    with open(f"{folder}.log", "wb") as log:
        command = ["unshare", "--mount", "sh", "-c", f'{mounts} && exec "$@"', "sh", *ray]
        node = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_for(lambda: "Ray runtime started" in Path(f"{folder}.log").read_text())
        yield
    finally:
        node.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            node.wait(20)
        with suppress(ProcessLookupError):
            os.killpg(node.pid, signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)
        Path(f"{folder}.log").unlink()


@pytest.mark.faults
@pytest.mark.slow
def test_a_run_on_nodes_that_share_no_file_system(undisturbed, trial, tmp_path):
    if subprocess.run(["unshare", "--mount", "true"], capture_output=True).returncode:
        pytest.skip("a node cannot be given a file system of its own here")
    trial.out.mkdir()
    port, short = free_port(), Path(f"/tmp/tutti-{os.getpid()}")
    head = [
        "--head",
        f"--port={port}",
        "--include-dashboard=false",
        f"--dashboard-port={free_port()}",
        f"--ray-client-server-port={free_port()}",
    ]
    worker = [f"--address=127.0.0.1:{port}"]
    with ray_node(f"{short}a", [], *head), ray_node(f"{short}b", [trial.out, trial.data], *worker):
        options = ["--address", f"127.0.0.1:{port}", "--storage", (tmp_path / "storage").as_uri()]
        run = trial.start(*options)
        try:
            wait_for(lambda: (tmp_path / "storage" / DRIVER).exists())
            elsewhere = Trial(trial.data, tmp_path / "elsewhere").again(*options)
        finally:
            code, errors = finish(run)
    assert elsewhere.returncode == 2
    assert "another run is writing there" in elsewhere.stderr
    assert code == 0, errors
    assert errors.count(": started") == 3  # all branches at the first try
    assert trial.tables() == undisturbed.tables()
    stored = tmp_path / "storage"
    assert len(list(stored.glob(f"{BRANCHES}/*/{RECORD}"))) == 3
    assert (stored / "report.html").read_bytes() == (trial.out / "report.html").read_bytes()
    assert not list(stored.glob("checkpoints/*/*"))
