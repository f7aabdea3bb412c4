"""Ray on this machine: what it is told, who gets in, what falls to a branch, and that nothing is left of it."""

import json
import os
import platform
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import ray
from ray._private.utils import check_version_info

import scoring.errors
from cluster.capacity import GIB, gpus_of_a_branch, largest_memory, memory_share, require, slots
from cluster.jobs import submit_job
from cluster.session import _refusal, check_address, first_line, prepare_environment, session
from scoring.errors import InputError
from tests.cluster.conftest import below, ray_cluster

ROOT = str(Path(scoring.errors.__file__).parents[1])


def test_what_ray_is_told_is_explicit_and_what_is_set_stays():
    for address, folder, given, mode, temporary in (
        ("local", "/" + 38 * "x", {}, "token", None),
        ("local", "/" + 19 * "ü" + "x", {}, "token", "/tmp"),  # a socket's path would have too many bytes
        ("local", "/" + 39 * "x", {"RAY_TMPDIR": "/own"}, "token", "/own"),
        ("local", "/tmp", {"RAY_AUTH_MODE": "disabled"}, "disabled", None),
        ("auto", "/" + 39 * "x", {}, "disabled", None),
        ("host:6379", "/tmp", {"RAY_AUTH_TOKEN": "theirs"}, "token", None),
        ("host:6379", "/tmp", {"RAY_AUTH_TOKEN_PATH": "/theirs"}, "token", None),
    ):
        told = []
        for _ in range(2):
            with patch.dict(os.environ, given, clear=True), patch.object(tempfile, "tempdir", folder):
                prepare_environment(address)
                told.append({"RAY_AUTH_TOKEN": None, "RAY_TMPDIR": None, **os.environ})
        first, second = told
        assert (first["RAY_AUTH_MODE"], first["RAY_TMPDIR"], first["RAY_USAGE_STATS_ENABLED"]) == (mode, temporary, "0")
        assert given.items() <= first.items()
        assert first["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] == "0"  # else all packages are uploaded under `uv run`
        assert first.get("RAY_worker_niceness") == ("0" if address == "local" else None)
        if address == "local" and mode == "token":
            assert len(first["RAY_AUTH_TOKEN"]) == 64
            assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
        else:
            assert first["RAY_AUTH_TOKEN"] == given.get("RAY_AUTH_TOKEN")


def connect(address="local"):
    with session(address):
        raise AssertionError("there is a Ray")


def test_an_address_of_nothing_or_another_version_is_refused_and_a_start_tried_twice(tmp_path, monkeypatch, caplog):
    submit = partial(submit_job, command="true", folder=Path())
    for call, address, message in (
        (connect, "127.0.0.1:1", "^no Ray cluster answers at 127.0.0.1:1 "),
        (connect, "ray://127.0.0.1:1", "^no Ray cluster answers at ray://127.0.0.1:1 "),
        (connect, "nobody.invalid:6379", "^no Ray cluster answers at nobody.invalid:6379 "),
        (connect, "127.0.0.1:head", "^no Ray cluster answers at 127.0.0.1:head .*'head'"),
        (connect, "[::1:6379", r"^no Ray cluster answers at \[::1:6379 .*IPv6"),
        (connect, "http://127.0.0.1:8265", "is a dashboard, .* use `tutti submit`"),
        (submit, "127.0.0.1:8265", "^--address 127.0.0.1:8265: give the dashboard's"),
        (submit, "ray://127.0.0.1:1", "^--address ray://127.0.0.1:1: give the dashboard's"),
        (submit, "http://127.0.0.1:1", "^no Ray dashboard answers at http://127.0.0.1:1 "),
    ):
        with pytest.raises(InputError, match=message):
            call(address)
    with socket.create_server(("127.0.0.77", 10001)):  # of this machine, and nobody else's; the port of Ray's clients
        check_address("ray://127.0.0.77")
    for theirs in (("2.40.0", "3.11.7"), (ray.__version__, "3.9.1")):
        with pytest.raises(RuntimeError) as differs:
            check_version_info(dict(zip(("ray_version", "python_version"), theirs, strict=True)), "node", True)
        told = "the cluster at host:6379 has Ray {} (Python {}), this is Ray {} (Python {}); install the same versions"
        ours = (ray.__version__, platform.python_version())
        assert _refusal("host:6379", differs.value) == f"{told.format(*theirs, *ours)} on both"
    for folder, reason in (
        ("/proc/nowhere", "No such file.*; /proc/nowhere must be a folder that you may write to, or name another"),
        (100 * "x", "AF_UNIX path length .*; its sockets need a short folder: export RAY_TMPDIR=/tmp"),
    ):
        caplog.clear()
        monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / folder))
        with pytest.raises(InputError, match=rf"^Ray does not start .*{reason}") as refused:
            connect()
        assert "\n" not in str(refused.value)
        assert caplog.text.count("trying once more") == 1
        assert not ray.is_initialized()
    assert [first_line(e) for e in (ValueError("\n what \nTraceback\n"), TimeoutError())] == ["what ", "TimeoutError"]


INTERRUPTED = """
import os, psutil, signal, threading, time
from cluster.session import session
def interrupt():
    while not any(process.name() == "gcs_server" for process in psutil.Process().children()):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)
signal.signal(signal.SIGTERM, signal.default_int_handler)
threading.Thread(target=interrupt, daemon=True).start()
try:
    with session(num_cpus=1):
        time.sleep(20)
except KeyboardInterrupt:
    left = psutil.wait_procs(psutil.Process().children(recursive=True), 3)[1]
    print("interrupted", left, signal.getsignal(signal.SIGTERM) == signal.default_int_handler)
"""
WHOLE = f"""
import json, os, signal, sys, time
sys.path[0] = {ROOT!r}
from cluster.session import session
with session(num_cpus=1):
    import psutil, ray
    package = ray.get(ray.remote(lambda: __import__("scoring.errors").errors.__file__).remote())
    started, ending = psutil.Process().children(recursive=True), time.monotonic()
at_once = time.monotonic() - ending < 3  # Ray itself would wait for each in turn
left = [process.name() for process in psutil.wait_procs(started, 3)[1]]
blocked = signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, ())
print(json.dumps([package, at_once, left, ray.is_initialized(), blocked, os.getcwd()]))
"""


@pytest.mark.slow
def test_a_session_leaves_nothing_be_its_start_interrupted_or_its_folder_of_any_name_and_content(tmp_path):
    """The temporary folder is a scheduler's, with a long name; the working folder has scripts called like packages."""
    interrupted = subprocess.check_output([sys.executable, "-c", INTERRUPTED], text=True, timeout=100)
    assert interrupted == "interrupted [] True\n"
    scripts, folder = tmp_path / "scripts", tmp_path / ("as_schedulers_make_them_" + 60 * "x")
    scripts.mkdir()
    folder.mkdir()
    for package in ("scoring", "cluster", "fusion", "branches", "orchestrator"):
        (scripts / f"{package}.py").write_text("raise SystemExit('a script of the user')")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_TMPDIR"} | {"TMPDIR": str(folder)}
    printed = subprocess.check_output([sys.executable, "-c", WHOLE], env=environment, cwd=scripts, timeout=100)
    assert json.loads(printed) == [scoring.errors.__file__, True, [], False, False, str(scripts)]
    (scripts / "orchestrator.py").unlink()  # which Python itself would run
    command = [sys.executable, "-m", "orchestrator", "--version"]
    assert b"tutti" in subprocess.check_output(command, cwd=scripts, env={**os.environ, "PYTHONPATH": ROOT})


@pytest.mark.slow
def test_a_local_session_has_its_share_lets_no_stranger_in_and_outlives_a_signal_to_all():
    with session(num_cpus=2):
        assert ray.cluster_resources()["CPU"] == 2
        assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == os.nice(0)
        visitor = "from ray._raylet import GcsClient; GcsClient(sys.argv[1]).check_alive([], 5); print('in')"
        command = [sys.executable, "-c", f"import sys; {visitor}", ray.get_runtime_context().gcs_address]
        nothing = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN"} | {"RAY_AUTH_MODE": "disabled"}
        for told in (nothing, {**os.environ, "RAY_AUTH_TOKEN": 64 * "f"}, os.environ):
            visit = subprocess.run(command, env=told, capture_output=True, text=True, timeout=100)
            assert visit.stdout == ("in\n" if told is os.environ else "")
            assert ("AuthenticationError" in visit.stderr) == (told is not os.environ)
        running = below(os.getpid(), "ray")
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGHUP)
        ended, _ = psutil.wait_procs([p for p in running if p.name() in ("raylet", "gcs_server")], 1)
        assert not ended
        assert ray.get(ray.remote(lambda: 1).remote()) == 1


@pytest.mark.slow
def test_what_falls_to_a_branch_is_counted_node_by_node_and_what_no_node_can_give_is_refused():
    with ray_cluster(num_cpus=8, memory=64 * GIB) as cluster:
        cluster.add_node(num_cpus=4, num_gpus=2, memory=8 * GIB)
        ray.init(address=cluster.address, log_to_driver=False)
        assert slots({"CPU": 3, "GPU": 0}) == slots({"CPU": 3}) == 2 + 1
        assert [slots({"CPU": 1, "GPU": gpus}) for gpus in (1, 0.5, 1 / 3)] == [2, 4, 4]  # at last of CPUs
        assert slots({"CPU": 0.1, "GPU": 0.1}) == 20  # although 2 // 0.1 is 19
        assert slots({"CPU": 1, "memory": 5 * GIB}) == 8 + 1
        assert [gpus_of_a_branch(wanted) for wanted in (None, 0.25, 0.0)] == [1, 0.25, 0]
        assert [largest_memory({"CPU": 1.0, "GPU": gpus}) for gpus in (0.0, 1.0)] == [64 * GIB, 8 * GIB]
        assert [memory_share({"CPU": count}) for count in (1.0, 4.0)] == [2 * GIB, 8 * GIB]
        assert memory_share({"CPU": 1.0, "GPU": 1.0}) == 4 * GIB  # the node without GPUs has no say
        assert memory_share({"GPU": 3.0}) == largest_memory({"GPU": 3.0}) == 0
        require({"CPU": 4, "GPU": 2, "memory": 8 * GIB})
        with pytest.raises(InputError, match="needs 9 CPU on one node, the largest node has 8 CPU"):
            require({"CPU": 9})
        with pytest.raises(InputError, match=r"1 GPU, 16 GiB memory on one node, the largest .* 2 GPU, 64 GiB memory"):
            require({"GPU": 1, "memory": 16 * GIB})
