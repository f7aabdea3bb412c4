import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import ray

import scoring.errors
from cluster.capacity import require
from cluster.session import session
from scoring.errors import InputError
from tests.cluster.conftest import below, command_of


def test_a_local_session_starts_checks_and_ends():
    with session(num_cpus=2):
        assert ray.cluster_resources()["CPU"] == 2
        assert os.environ["RAY_AUTH_MODE"] == "token"
        require({"CPU": 2})
        with pytest.raises(InputError, match="needs 3 CPU, 1 GPU on one node, the largest node has 2 CPU, 0 GPU"):
            require({"CPU": 3, "GPU": 1})
    assert not ray.is_initialized()


def test_a_sigterm_to_all_processes_ends_none_of_rays():
    with session(num_cpus=1):
        running = [process for process in below(os.getpid()) if "ray" in command_of(process)]
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert sum(process.is_running() and process.name() in ("raylet", "gcs_server") for process in running) == 2
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
    assert not psutil.wait_procs(running, 10)[1]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


INTERRUPTED = """
import os, signal, sys, threading, time
from cluster.session import session
signal.signal(signal.SIGTERM, signal.default_int_handler)
threading.Timer(float(sys.argv[1]), os.kill, (os.getpid(), signal.SIGTERM)).start()
try:
    with session(num_cpus=1):
        time.sleep(20)
except KeyboardInterrupt:
    print("interrupted")
"""


@pytest.mark.parametrize("seconds", [1, 2])
def test_a_sigterm_while_ray_starts_is_an_interruption(seconds):
    command = [sys.executable, "-c", INTERRUPTED, str(seconds)]
    starting = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert starting.communicate(timeout=100)[0] == "interrupted\n"
    left = [process for process in psutil.process_iter() if group_of(process) == starting.pid]
    assert not psutil.wait_procs(left, 10)[1]


LOCAL = (
    "from cluster.session import session\nimport ray\nwith session(num_cpus=1): print(ray.get(ray.remote({}).remote()))"
)


def test_a_long_temporary_folder_is_no_hindrance(tmp_path):
    folder = tmp_path / ("as_schedulers_make_them_" + 60 * "x")
    folder.mkdir()
    code = LOCAL.format("lambda: 7")
    environment = {k: v for k, v in os.environ.items() if k != "RAY_TMPDIR"} | {"TMPDIR": str(folder)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True, timeout=100) == "7\n"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", str(folder))
        with pytest.raises(InputError, match=r"AF_UNIX path length .* a RAY_TMPDIR must be short"), session():
            pass


def test_scripts_of_the_working_folder_are_not_taken_for_packages(tmp_path):
    for package in ("scoring", "cluster", "fusion", "branches", "orchestrator"):
        (tmp_path / f"{package}.py").write_text("raise SystemExit('a script of the user')")
    code = LOCAL.format("lambda: __import__('scoring.errors').errors.__file__")
    root = str(Path(scoring.errors.__file__).parents[1])
    command = [sys.executable, "-c", f"import sys; sys.path[0] = {root!r}\n{code}"]
    assert subprocess.check_output(command, cwd=tmp_path, text=True, timeout=100).strip() == scoring.errors.__file__
    version = [sys.executable, "-m", "orchestrator", "--version"]
    (tmp_path / "orchestrator.py").unlink()  # which Python itself would run
    environment = {**os.environ, "PYTHONPATH": root}
    assert b"tutti" in subprocess.check_output(version, cwd=tmp_path, env=environment, timeout=100)


def test_a_ray_that_cannot_start_is_tried_twice_and_ends_in_one_line(monkeypatch, caplog):
    monkeypatch.setenv("RAY_TMPDIR", "/proc/nowhere")
    with pytest.raises(InputError, match=r"^Ray does not start .*/proc/nowhere.*; free memory") as refused, session():
        pass
    assert "\n" not in str(refused.value)
    assert len([record for record in caplog.records if "trying once more" in record.getMessage()]) == 1
    assert not ray.is_initialized()


def group_of(process):
    with suppress(ProcessLookupError):
        return os.getpgid(process.pid)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nobody.invalid:6379"])
def test_an_address_where_nothing_listens_is_refused_at_once(address):
    with pytest.raises(InputError, match="no Ray cluster answers at"), session(address):
        pass


def test_strangers_do_not_get_into_a_local_session():
    code = "import sys, ray; ray.init(address=sys.argv[1], logging_level='CRITICAL')"
    others = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")}
    with session(num_cpus=1):
        address = ray.get_runtime_context().gcs_address
        stranger = subprocess.run(
            [sys.executable, "-c", code, address],
            env={**others, "RAY_AUTH_MODE": "disabled"},
            capture_output=True,
            text=True,
            timeout=100,
        )
    assert stranger.returncode != 0
    assert "AuthenticationError" in stranger.stderr
