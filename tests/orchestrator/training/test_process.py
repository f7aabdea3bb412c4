"""Work in a process of its own: results, errors, reports, and deaths on either side."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch

from orchestrator.ledger.storage import StorageAway
from orchestrator.training.process import KILLED, ProcessDied, WorkFailed, in_own_process, may_pass, packed
from scoring.errors import InputError
from tests.cluster.conftest import wait_for

INPUT_ERROR = InputError("it is wrong; mend it")


def done(work, subject, report=print):
    return in_own_process(packed(subject), packed((work,)), report)


def counting(numbers, report):
    for number in numbers:
        report(number, os.getpid())
    return sum(numbers)


def ending(how, report):
    if isinstance(how, Exception):
        how.held = lambda: None  # so that it cannot be pickled
        raise how
    if how < 0:
        os._exit(-how)
    os.kill(os.getpid(), how)


def waiting(place, report):
    (place / "pid").write_text(str(os.getpid()))
    report("waits")
    time.sleep(100)


@pytest.mark.slow
def test_each_call_has_a_process_and_its_reports_come_in_order():
    heard = []
    assert [done(counting, some, lambda *values: heard.append(values)) for some in ([1, 2, 3], [4])] == [6, 4]
    assert [number for number, _ in heard] == [1, 2, 3, 4]
    assert len({heard[0][1], heard[3][1], os.getpid()}) == 3


def test_only_bad_luck_is_tried_again():
    bad_luck = [OSError(errno.EIO, "Input/output error"), ConnectionResetError(errno.ECONNRESET, "reset by peer")]
    bad_luck += [TimeoutError(), StorageAway(), MemoryError(), torch.AcceleratorError("CUDA error: ECC error")]
    faults = [ImportError("libtorchaudio.so: undefined symbol"), IndexError("out of range"), INPUT_ERROR]
    faults += [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.ENOSPC, "No space left on device")]
    assert [may_pass(error) for error in (*bad_luck, *faults)] == [True] * 6 + [False] * 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "told"),
    [
        (INPUT_ERROR, r"^it is wrong; mend it$"),
        (ValueError("it is odd"), r"in ending\n(.|\n)*\nValueError: it is odd$"),
        (TimeoutError("it was slow"), r"in ending\n(.|\n)*\nTimeoutError: it was slow$"),
        (signal.SIGKILL, KILLED),
        (signal.SIGSEGV, r"died of SIGSEGV$"),
        (-3, r"ended with exit code 3$"),
    ],
)
def test_an_end_is_told_and_an_error_that_is_no_users_with_its_traceback(how, told):
    with pytest.raises(WorkFailed if isinstance(how, Exception) else ProcessDied, match=told) as died:
        done(ending, how)
    assert (KILLED in str(died.value)) == (how == signal.SIGKILL)
    assert getattr(died.value, "may_pass", False) == isinstance(how, TimeoutError)


@pytest.mark.slow
def test_it_ends_with_its_parent_and_when_that_stops_listening(tmp_path):
    """Also where the temporary folder's name is too long for a socket in it."""
    pid, long = tmp_path / "pid", tmp_path / ("long" * 20)
    with pytest.raises(KeyboardInterrupt):
        done(waiting, tmp_path, Mock(side_effect=KeyboardInterrupt))
    assert not Path("/proc", pid.read_text()).exists()
    pid.unlink()
    long.mkdir()
    code = f"import pathlib, {__name__} as m; m.done(m.waiting, pathlib.Path({str(tmp_path)!r}))"
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "TMPDIR": str(long)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment)
    wait_for(lambda: pid.exists() and pid.read_text())
    child = Path("/proc", pid.read_text())
    assert child.exists()
    parent.kill()
    parent.wait()
    wait_for(lambda: not child.exists() or "Z" in (child / "stat").read_text().rpartition(")")[2][:3], 10)
