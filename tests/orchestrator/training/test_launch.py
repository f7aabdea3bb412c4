"""What a run does before anything is trained; branches on a real Ray: what is tried again, and with more memory."""

import errno
import os
import signal
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from branches.spec import BranchSpec
from cluster.session import session
from orchestrator.ledger.folders import BRANCHES, FAILURES, record_failure
from orchestrator.plan import Branch, Plan
from orchestrator.training.job import RunOptions
from orchestrator.training.launch import RunInterrupted, _asked, _failure, launch, train_missing
from scoring.detectors import MahalanobisSpec
from scoring.errors import InputError
from tests.tables import make_table


class Connected(Exception):
    """Ray is wanted; the tests end here."""


def connect():
    raise Connected


@pytest.mark.slow
def test_what_a_run_finds_and_prepares_before_it_connects(bench, tmp_path):
    storage, wanted = tmp_path / "storage", bench.plan.branches[0]
    options = RunOptions(data=bench.data, out=bench.out, storage=storage.as_uri())
    given = bench.job(gpus_per_branch=0.5, memory_per_branch=2.0)
    assert (given.resources, given.device) == ({"CPU": 1.0, "GPU": 0.5, "memory": float(2 << 30)}, "cuda")
    assert (bench.job().resources, bench.job().device) == ({"CPU": 1.0}, "cpu")
    # What is finished needs no Ray, and learns which systems use it.
    finished = Plan((replace(wanted, systems=("s", "t")),), {})
    assert train_missing(finished, bench.dataset, options, connect) is None
    assert bench.record.tags["system"] == "s,t"
    assert (storage / BRANCHES / wanted.branch_id / "record.json").exists()
    bench.configurations = [{"detector": "knn"}]
    job = bench.job()
    record_failure(bench.out, wanted.branch_id, bench.record, "it was killed")
    rests = [bench.folder / ".half", job.checkpoints / "b.7.tmp", job.cache / "clips-0"]
    others = [job.checkpoints / "b.pt", job.decoded_noise, job.derived]
    for path in (*rests, *others):
        path.mkdir() if path.parent == job.cache else path.touch()
    with pytest.raises(Connected):
        train_missing(bench.plan, bench.dataset, options, connect)
    assert not (bench.out / FAILURES / wanted.branch_id).exists()
    assert [path.exists() for path in (*rests, *others)] == [False] * 3 + [True] * 3
    assert (storage / job.decoded.relative_to(bench.out) / "samples").exists()


def test_of_what_is_left_each_branch_has_its_reason_and_a_baseline_stops_nothing(tmp_path, caplog):
    systems = {"a": ("s", "t"), "b": ("s",), "base": ()}
    left = [Branch(name, "", f"systems/{name}", used, BranchSpec(), ()) for name, used in systems.items()]
    told = str(_failure(left, {"a": "Traceback\nValueError: odd\n"}, tmp_path, "data"))
    assert told.startswith("2 branches failed, the others are kept; run again to retry, or add --fuse-incomplete")
    assert f"systems/a (system s, t): ValueError: odd [{tmp_path / FAILURES / 'a' / 'reason.txt'}]" in told
    assert "systems/b (system s): not finished; its score tables are not in the ledger" in told
    assert "no baseline: systems/base" in caplog.text
    assert {path.name for path in (tmp_path / FAILURES).iterdir()} == {*systems}
    assert _failure(left[2:], {}, tmp_path, "data") is None


@dataclass(frozen=True)
class Work:
    """Dies as often as the branch's seed says, unless its name tells another way to end."""

    folder: Path

    def __call__(self, branch, job, index, report):
        with (self.folder / branch.branch_id).open("a") as file:
            file.write("x")
        tries = (self.folder / branch.branch_id).stat().st_size
        errors = {
            "wrong": InputError("it is wrong; mend it"),
            "faulty": ImportError("libtorchaudio.so: undefined symbol"),
        }
        errors |= {"full": OSError(errno.ENOSPC, "No space left on device")}
        if tries == 1:
            errors |= {"away": ConnectionResetError("the storage's server went away")}
        if branch.name in errors:
            raise errors[branch.name]
        if branch.name == "interrupts":
            time.sleep(1)
            os.kill(int(branch.config_id), signal.SIGINT)  # the driver, as Ctrl-C does
        if branch.name in ("interrupts", "waits", "never begins"):
            time.sleep(100)
        if tries <= branch.spec.seed:
            os.kill(os.getpid(), signal.SIGKILL)
        return 50.0


@pytest.mark.faults
@pytest.mark.slow
def test_how_branches_end(bench, tmp_path, monkeypatch):
    monkeypatch.setattr("orchestrator.training.launch.RETRIES", 1)  # for each try is of a new worker
    monkeypatch.setattr("orchestrator.training.launch.SCALES", (1, 2))
    (tmp_path / "tries").mkdir()

    def failures(**deaths):
        settings = [(name, BranchSpec(seed=seed)) for name, seed in deaths.items()]
        branches = [Branch(n, str(os.getpid()), n, ("s",), spec, (MahalanobisSpec(),)) for n, spec in settings]
        return launch(branches, bench.job(), make_table().select([]), Work(tmp_path / "tries"))

    with session(num_cpus=2):
        once, twice, most = (_asked(bench.job().resources, scale)["memory"] for scale in (1, 2, 100))
        failed = failures(well=0, unlucky=1, hungry=2, doomed=1000, wrong=0, faulty=0, full=0, away=0)
        tries = {path.name: path.stat().st_size for path in (tmp_path / "tries").iterdir()}
        # What Ctrl-C stops has not failed.
        with pytest.raises(RunInterrupted, match="3 branches unfinished; run again to continue"):
            failures(wrong=0, interrupts=0, waits=0, **{"never begins": 0})
    assert most == twice >= 2 * once > 0  # all that two branches at once have
    assert tries == {"well": 1, "unlucky": 2, "hungry": 3, "doomed": 4, "wrong": 1, "faulty": 1, "full": 1, "away": 2}
    assert set(failed) == {"doomed", "wrong", "faulty", "full"}
    assert failed["faulty"].endswith("ImportError: libtorchaudio.so: undefined symbol")
    assert failed["wrong"] == "it is wrong; mend it"
    assert "killed, most likely for lack of memory" in failed["doomed"]
