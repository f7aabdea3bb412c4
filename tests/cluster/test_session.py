import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import psutil
import pytest
import ray

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
