"""Ray on this machine: what it is told, who gets in, what signals do to it, and that nothing is left of it."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import psutil
import pytest
import ray

import scoring.errors
from cluster.session import check_address, first_line, prepare_environment, session
from scoring.errors import InputError
from tests.cluster.conftest import below

ROOT = str(Path(scoring.errors.__file__).parents[1])
RELEASE = "2.60"  # whose `Node` has `all_processes` and `kill_all_processes(check_alive, allow_graceful)`


def test_one_file_rests_on_what_ray_does_not_publish_and_is_for_this_release():
    assert version("ray").startswith(f"{RELEASE}."), (
        "another Ray: see whether its Node still has all_processes and kill_all_processes, then raise RELEASE"
    )
    files = [
        path for name in ("cluster", "orchestrator", "branches", "fusion") for path in Path(ROOT, name).rglob("*.py")
    ]
    assert [path.name for path in files if re.search(r"(import|from) ray\._private", path.read_text())] == [
        "processes.py"
    ]


@pytest.mark.parametrize(
    ("address", "folder", "given", "mode", "temporary"),
    [
        ("local", "/" + 38 * "x", {}, "token", None),
        ("local", "/" + 39 * "x", {}, "token", "/tmp"),  # a socket's path would be too long
        ("local", "/" + 20 * "ü", {}, "token", "/tmp"),
        ("local", "/" + 39 * "x", {"RAY_TMPDIR": "/own"}, "token", "/own"),
        ("local", "/tmp", {"RAY_AUTH_MODE": "disabled"}, "disabled", None),
        ("auto", "/" + 39 * "x", {}, "disabled", None),
        ("host:6379", "/tmp", {"RAY_AUTH_TOKEN": "theirs"}, "token", None),
        ("host:6379", "/tmp", {"RAY_AUTH_TOKEN_PATH": "/theirs"}, "token", None),
    ],
)
def test_what_ray_is_told_is_explicit_and_what_is_set_stays(address, folder, given, mode, temporary):
    told = []
    for _ in range(2):
        with patch.dict(os.environ, given, clear=True), patch.object(tempfile, "tempdir", folder):
            prepare_environment(address)
            told.append({"RAY_AUTH_TOKEN": None, "RAY_TMPDIR": None, **os.environ})
    first, second = told
    assert (first["RAY_AUTH_MODE"], first["RAY_TMPDIR"], first["RAY_USAGE_STATS_ENABLED"]) == (mode, temporary, "0")
    assert given.items() <= first.items()
    if address == "local" and mode == "token":
        assert len(first["RAY_AUTH_TOKEN"]) == 64
        assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]
    else:
        assert first["RAY_AUTH_TOKEN"] == given.get("RAY_AUTH_TOKEN")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1 "),
        ("ray://127.0.0.1:1", "no Ray cluster answers at ray://127.0.0.1:1 "),
        ("nobody.invalid:6379", "no Ray cluster answers at nobody.invalid:6379 "),
        ("127.0.0.1:head", "no Ray cluster answers at 127.0.0.1:head .*'head'"),
        ("[::1:6379", r"no Ray cluster answers at \[::1:6379 .*IPv6"),
        ("http://127.0.0.1:8265", "is a dashboard, .* use `tutti submit`"),
    ],
)
def test_an_address_where_nothing_listens_is_refused_at_once(address, message):
    with pytest.raises(InputError, match=message), session(address):
        pass


def test_an_address_without_a_port_has_that_of_rays_clients():
    with socket.create_server(("127.0.0.77", 10001)):  # of this machine, and nobody else's
        check_address("ray://127.0.0.77")


@pytest.mark.parametrize(
    ("folder", "reason"),
    [("/proc/nowhere", "/proc/nowhere"), (100 * "x", "AF_UNIX path length .* a RAY_TMPDIR must be short")],
)
def test_a_ray_that_cannot_start_is_tried_twice_and_ends_in_one_line(folder, reason, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / folder))
    with pytest.raises(InputError, match=rf"^Ray does not start .*{reason}") as refused, session():
        pass
    assert "\n" not in str(refused.value)
    assert caplog.text.count("trying once more") == 1
    assert not ray.is_initialized()


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


@pytest.mark.slow
def test_a_sigterm_while_ray_starts_is_an_interruption_that_leaves_nothing():
    command = [sys.executable, "-c", INTERRUPTED]
    assert subprocess.check_output(command, text=True, timeout=100) == "interrupted [] True\n"


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
def test_a_session_in_a_folder_of_any_name_and_content_leaves_nothing(tmp_path):
    """The temporary folder is a scheduler's, with a long name; the working folder has scripts called like packages."""
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


def test_of_an_error_only_what_it_says_is_told():
    assert first_line(ValueError("\n what \nTraceback\nhints")) == "what "
    assert first_line(TimeoutError()) == "TimeoutError"


@pytest.fixture(scope="module")
def here():
    """A session of this process; tests of other sessions come before."""
    with session(num_cpus=2):
        yield


@pytest.mark.slow
def test_a_local_session_has_what_is_asked_for_and_leaves_room_for_others(here):
    assert ray.cluster_resources()["CPU"] == 2
    assert ray.get(ray.remote(lambda: os.nice(0)).remote()) == 15


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, 64 * "f", "own"])
def test_strangers_do_not_get_into_a_local_session(here, token):
    code = "import sys; from ray._raylet import GcsClient; GcsClient(sys.argv[1]).check_alive([], 5); print('in')"
    environment = {k: v for k, v in os.environ.items() if k != "RAY_AUTH_TOKEN"} | {"RAY_AUTH_MODE": "disabled"}
    if token:
        own = os.environ["RAY_AUTH_TOKEN"]
        environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": own if token == "own" else token}
    command = [sys.executable, "-c", code, ray.get_runtime_context().gcs_address]
    visit = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert visit.stdout == ("in\n" if token == "own" else "")
    assert ("AuthenticationError" in visit.stderr) == (token != "own")


@pytest.mark.slow
def test_a_sigterm_to_all_processes_ends_none_of_rays(here):
    running = below(os.getpid(), "ray")
    for process in running:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGTERM)
    ended, _ = psutil.wait_procs([p for p in running if p.name() in ("raylet", "gcs_server")], 1)
    assert not ended
    assert ray.get(ray.remote(lambda: 1).remote()) == 1
