"""Work in a process of its own: results, errors, reports, and deaths on either side."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from orchestrator.ledger.storage import StorageAway
from orchestrator.training.process import (
    KILLED,
    ProcessDied,
    WorkFailed,
    in_own_process,
    may_pass,
    packed,
)
from scoring.errors import InputError
from tests.cluster.conftest import wait_for


def counting(numbers, report):
    for number in numbers:
        report(number, os.getpid())
    return sum(numbers)


def failing(text, report):
    raise InputError(f"{text}; mend it")


def odd(text, report):
    error = ValueError(text)
    error.held = lambda: None  # cannot be pickled
    raise error


def dying(how, report):
    os.kill(os.getpid(), how)


def test_each_call_has_a_process_and_its_reports_come_in_order():
    heard = []
    result = in_own_process(packed([1, 2, 3]), packed((counting,)), lambda *values: heard.append(values))
    assert result == 6
    assert [number for number, _ in heard] == [1, 2, 3]
    other = []
    in_own_process(packed([1]), packed((counting,)), lambda *values: other.append(values))
    assert len({heard[0][1], other[0][1], os.getpid()}) == 3


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ImportError("libtorchaudio.so: undefined symbol"), False),
        (IndexError("list index out of range"), False),
        (InputError("it is wrong; mend it"), False),
        (PermissionError(errno.EACCES, "Permission denied"), False),
        (OSError(errno.ENOSPC, "No space left on device"), False),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ESTALE, "Stale file handle"), True),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), True),
        (TimeoutError(), True),
        (StorageAway("it does not answer"), True),
        (MemoryError(), True),
        (torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"), True),
    ],
)
def test_only_bad_luck_is_tried_again(error, passes):
    assert may_pass(error) is passes


def test_errors_come_back_as_text_and_what_is_no_input_error_with_its_traceback():
    with pytest.raises(WorkFailed, match=r"^the thing is wrong; mend it$") as wrong:
        in_own_process(packed("the thing is wrong"), packed((failing,)), print)
    with pytest.raises(WorkFailed, match=r"in odd\n(.|\n)*\nValueError: it is odd$") as failed:
        in_own_process(packed("it is odd"), packed((odd,)), print)
    assert not wrong.value.may_pass
    assert not failed.value.may_pass


@pytest.mark.parametrize(
    ("how", "told"),
    [(signal.SIGKILL, "killed, most likely for lack of memory"), (signal.SIGSEGV, "died of SIGSEGV")],
)
def test_a_death_is_told(how, told):
    with pytest.raises(ProcessDied, match=told) as died:
        in_own_process(packed(how), packed((dying,)), print)
    assert (KILLED in str(died.value)) == (how == signal.SIGKILL)


def waiting(place, report):
    (place / "pid").write_text(str(os.getpid()))
    time.sleep(100)


PARENT = """
import sys
from pathlib import Path
from orchestrator.training.process import in_own_process, packed
from tests.orchestrator.training.test_process import waiting
if __name__ == "__main__":
    in_own_process(packed(Path(sys.argv[1])), packed((waiting,)), print)
"""


def test_it_ends_with_its_parent(tmp_path):
    (tmp_path / "parent.py").write_text(PARENT)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py", tmp_path], env=environment)
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child = Path("/proc") / (tmp_path / "pid").read_text()
    assert child.exists()
    parent.kill()
    parent.wait()
    wait_for(lambda: not child.exists() or "Z" in (child / "stat").read_text().rpartition(")")[2][:3], 10)
