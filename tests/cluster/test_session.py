import os
import signal
import subprocess
import sys
import time

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
        assert sum(process.name() in ("raylet", "gcs_server") for process in running) == 2
        for process in running:
            process.send_signal(signal.SIGTERM)
        time.sleep(1)
        assert ray.get(ray.remote(lambda: 1).remote()) == 1
        began = time.monotonic()
    assert time.monotonic() - began < 5  # a second for each process, were it asked to end first
    assert not psutil.wait_procs(running, 10)[1]
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


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
