"""What a run does before branches train, their processes, how they end, what it shows, and clips that it generates."""

import errno
import io
import logging
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from rich.console import Console

from branches.audio.cache import open_cache
from branches.spec import PROJECTION, BranchSpec
from cluster.session import session
from orchestrator.cost import petaflop
from orchestrator.ledger.folders import BRANCHES, FAILURES, record_failure
from orchestrator.ledger.storage import StorageAway
from orchestrator.plan import Branch, Plan, Scoring, Use
from orchestrator.training import launch, process, progress
from orchestrator.training.generated import generated_clips, in_order, nothing_rare, on_sets, set_folders
from orchestrator.training.job import RunOptions
from scoring.detectors import MahalanobisSpec
from scoring.errors import InputError
from tests.cluster.conftest import wait_for
from tests.orchestrator.training.conftest import Bench
from tests.tables import make_table


def branch(name="", systems=("s",), **settings):
    scoring = Scoring(PROJECTION, MahalanobisSpec())
    uses = tuple(Use(system, f"systems/{name}", scoring) for system in systems or [""])
    return Branch(name, str(os.getpid()), BranchSpec(**settings), uses)


@pytest.mark.slow
def test_what_a_run_finds_and_prepares_before_it_connects(bench, tmp_path):
    storage, wanted = tmp_path / "storage", bench.plan.branches[0]
    options = RunOptions(data=bench.data, out=bench.out, storage=storage.as_uri())
    connect = Mock(side_effect=KeyboardInterrupt)  # where Ray is wanted the test ends
    given = bench.job(gpus_per_branch=0.5, memory_per_branch=2.0)
    assert (given.resources, given.device) == ({"CPU": 1.0, "GPU": 0.5, "memory": float(2 << 30)}, "cuda")
    assert (bench.job().resources, bench.job().device) == ({"CPU": 1.0}, "cpu")
    finished = Plan((replace(wanted, uses=(*wanted.uses, wanted.uses[0]._replace(system="t"))),), {})
    assert launch.train_missing(finished, bench.dataset, options, connect) is None
    assert bench.record.tags["system"] == "s,t"
    assert (storage / BRANCHES / wanted.branch_id / "record.json").exists()
    bench.configurations = [{"detector": "knn"}]
    job = bench.job()
    record_failure(bench.out, wanted.branch_id, bench.record, "it was killed")
    rests = [bench.folder / ".half", job.checkpoints / "b.7.tmp", job.cache / "clips-0"]
    others = [job.checkpoints / "b.pt", job.decoded_noise, job.derived]
    for path in (*rests, *others):
        path.mkdir() if path.parent == job.cache else path.touch()
    with pytest.raises(KeyboardInterrupt):
        launch.train_missing(bench.plan, bench.dataset, options, connect)
    assert not (bench.out / FAILURES / wanted.branch_id).exists()
    assert [path.exists() for path in (*rests, *others)] == [False] * 3 + [True] * 3
    assert (storage / job.decoded.relative_to(bench.out) / "samples").exists()


def test_of_what_is_left_each_branch_has_its_reason_and_a_baseline_stops_nothing(tmp_path, caplog):
    left = [branch("a", ("s", "t")), branch("b"), branch("base", ())]
    told = str(launch._failure(left, {"a": "Traceback\nValueError: odd\n"}, tmp_path, "data"))
    assert told.startswith("2 branches failed, the others are kept; run again to retry, or add --fuse-incomplete")
    assert f"systems/a (system s, t): ValueError: odd [{tmp_path / FAILURES / 'a' / 'reason.txt'}]" in told
    assert "systems/b (system s): not finished; its score tables are not in the ledger" in told
    assert "no baseline: systems/base: not finished" in caplog.text
    assert {path.name for path in (tmp_path / FAILURES).iterdir()} == {"a", "b", "base"}
    assert launch._failure(left[2:], {}, tmp_path, "data") is None


@dataclass(frozen=True)
class Work:
    """Dies as often as the branch's seed says, unless its name tells another way to end."""

    folder: Path

    def __call__(self, branch, job, index, report):
        name, file = branch.branch_id, self.folder / branch.branch_id
        with file.open("a") as tries:
            tries.write("x")
        errors = {"wrong": InputError("it is wrong; mend it"), "full": OSError(errno.ENOSPC, "No space left on device")}
        errors["faulty"] = ImportError("libtorchaudio.so: undefined symbol")
        if file.stat().st_size == 1:
            errors["away"] = ConnectionResetError("the storage's server went away")
        if name in errors:
            raise errors[name]
        if name == "interrupts":
            while not (self.folder / "waits").exists():  # which has the place of one that has failed
                time.sleep(0.1)
            os.kill(int(branch.config_id), signal.SIGINT)  # the driver, as Ctrl-C does
        if name in ("interrupts", "waits", "never begins"):
            time.sleep(100)
        if file.stat().st_size <= branch.spec.seed:
            os.kill(os.getpid(), signal.SIGKILL)
        return 50.0


@pytest.mark.faults
@pytest.mark.slow
def test_how_branches_end(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "RETRIES", 1)  # for each try is of a new worker
    monkeypatch.setattr(launch, "SCALES", (1, 2))
    (tmp_path / "tries").mkdir()

    def failures(**deaths):
        branches = [branch(name, seed=seed) for name, seed in deaths.items()]
        return launch.launch(branches, bench.job(), make_table().select([]), Work(tmp_path / "tries"))

    with session(num_cpus=2):
        once, twice, most = (launch._asked(bench.job().resources, scale)["memory"] for scale in (1, 2, 100))
        failed = failures(well=0, unlucky=1, hungry=2, doomed=1000, wrong=0, faulty=0, full=0, away=0)
        tries = {path.name: path.stat().st_size for path in (tmp_path / "tries").iterdir()}
        with pytest.raises(KeyboardInterrupt):
            failures(wrong=0, interrupts=0, waits=0, **{"never begins": 0})
    assert 0 < 2 * once == twice <= most <= twice + 1  # byte: all that two branches at once have
    assert tries == {"well": 1, "unlucky": 2, "hungry": 3, "doomed": 4, "wrong": 1, "faulty": 1, "full": 1, "away": 2}
    assert set(failed) == {"doomed", "wrong", "faulty", "full"}
    assert failed["faulty"].endswith("ImportError: libtorchaudio.so: undefined symbol")
    assert failed["wrong"] == "it is wrong; mend it"
    assert "killed, most likely for lack of memory" in failed["doomed"]


FOUR = [branch(name, backbone={"path": "tiny"}, training={"steps": 100}) for name in "abcd"]


def step(number, loss, stage="branch", steps=100):
    return {"stage": stage, "step": number, "steps": steps, "loss": loss}


def trial(name, error_file=None, **last_result):
    return SimpleNamespace(config={"branch_id": name}, last_result=last_result, error_file=error_file)


def play(watcher):
    """The events that Tune sends: one branch ends well, one fails, one is under way, one waits."""
    for name in ("a", "b", "c"):
        watcher.on_trial_start(0, [], trial(name))
    for result in (step(50, 1.25), step(100, 1.0), {"omega": 61.5}):
        watcher.on_trial_result(0, [], trial("a"), result)
    watcher.on_trial_complete(0, [], trial("a", omega=61.5))
    watcher.on_trial_complete(0, [], trial("b", failure="Traceback\nValueError: the loss is not finite"))
    watcher.on_trial_result(0, [], trial("c"), step(3, 0.5, "generator", 5))
    watcher.on_trial_start(0, [], trial("c"))  # its worker was lost
    watcher.on_trial_result(0, [], trial("c"), step(30, 2.0))


def test_lines_where_there_is_no_terminal(capsys, monkeypatch, tmp_path):
    (tmp_path / "error.txt").write_text(f"Failure # 1\n1 worker(s) were {process.MEMORY_FULL}. Memory …\nSee …\n")
    generators = {"c": 9 * petaflop(FOUR[2].spec, 10)}
    with progress.shown(FOUR, 10, {"CPU": 1.0}, before=(5, 9), generators=generators) as watcher:
        play(watcher)
        monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
        watcher.on_trial_result(0, [], trial("c"), step(4, 0.5, "generator", 5))
        assert (watcher._done["a"], watcher._done["c"]) == (1.0, pytest.approx(0.72))
        watcher.on_trial_result(0, [], trial("c"), step(60, 1.5))
        watcher.on_trial_complete(0, [], trial("c", omega=None))
        watcher.on_trial_error(0, [], trial("d", str(tmp_path / "error.txt")))
    assert [line.rpartition(" (")[0].partition(", about")[0] for line in capsys.readouterr().err.splitlines()] == [
        *(f"[5/9] systems/{name}: started" for name in "abc"),
        "[6/9] systems/a: Omega 61.50",
        "[7/9] systems/b: ValueError: the loss is not finite",
        "[7/9] systems/c: started",  # and not every report is worth a line
        "[7/9] systems/c: generator: step 4 of 5, loss 0.500",
        "[7/9] systems/c: step 60 of 100, loss 1.500",
        "[8/9] systems/c: no labels to measure it by",
        f"[9/9] systems/d: {process.MEMORY_REMEDY}",  # its worker was killed before it began
    ]
    assert progress.reason("") == "failed; its process was lost"


def test_live_progress_on_a_terminal_where_a_name_is_cut_in_the_middle_so_that_its_seed_stays(monkeypatch):
    ours, theirs = os.openpty()
    os.set_blocking(ours, False)
    for name, value in {"TERM": "xterm", "COLUMNS": "120", "LINES": "30"}.items():
        monkeypatch.setenv(name, value)
    with os.fdopen(ours, "rb") as read, os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        handler = logging.StreamHandler(terminal)
        monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
        with suppress(KeyboardInterrupt), progress.shown(FOUR, 10, {"CPU": 2.0}, (0, 4)) as watcher:
            raise KeyboardInterrupt
        with progress.shown(FOUR, 10, {"CPU": 2.0, "memory": float(8 << 30)}, (0, 4)) as watcher:
            play(watcher)
            pickle.dumps(watcher)  # as Tune does
            logging.getLogger("orchestrator").warning("told meanwhile")
            assert handler.stream is not terminal
        assert handler.stream is terminal
        terminal.flush()
        text = read.read().decode()
    before, _, last = text.rpartition("1 of 4 branches finished")
    assert "stopping …" in before
    assert "told meanwhile" in before
    assert "1 running, 1 failed, 2 CPU, 8 GiB memory each" in last
    for piece in ("systems/b", "failed: ValueError: the loss is not fi", "systems/c", "step 30 of 100, loss 2.000"):
        assert last.count(piece) == 1
    for width, shown in ((13, "cancel/knn/12"), (12, "cance…knn/12"), (5, "ca…12")):
        console = Console(width=width, file=io.StringIO())
        console.print(progress._Name("cancel/knn/12"))
        assert console.file.getvalue().strip() == shown


GENERATOR = {"width": 16, "depth": 1, "steps": 3, "batch_size": 4, "crop_seconds": 0.8, "sampling_steps": 2}
GOOD = {"generated": {**GENERATOR, "fill": 1, "far_above": 100, "copy_below": 0}}
HOPELESS = {"generated": {**GENERATOR, "far_above": 1e-9}}


@pytest.fixture
def generating(dataset, tmp_path):
    bench = Bench(dataset, tmp_path / "out", (tmp_path / "storage").as_uri())
    bench.branch["augmentation"] = GOOD
    return bench


@pytest.mark.slow
def test_of_branches_that_want_a_set_the_first_makes_it_and_others_wait(generating, tmp_path):
    bench, job, index, steps = generating, generating.job(), generating.dataset.index, []
    arguments = (bench.plan.branches[0].spec, job, index, open_cache(job.data, index, job.decoded))
    with ThreadPoolExecutor() as branches:
        tries = [branches.submit(generated_clips, *arguments, lambda *r: steps.append(r[:3])) for _ in "ab"]
    assert steps == [("generator of clips", step, 3) for step in (1, 2, 3)]
    assert tries[0].result()[0] == tries[1].result()[0]
    assert bench.bring() == {"branch"}
    (told,) = on_sets(bench.plan.branches, job)
    assert re.match(r"generated clips: (\d+) of \1 samples passed the check \[.*check.json\]$", told)
    bench.branch["augmentation"] = HOPELESS
    with pytest.raises(InputError, match=r"of \d+ generated samples 0 passed the check"):
        bench.bring()
    assert on_sets(bench.plan.branches, bench.job())[0].startswith("generated clips: 0 of")
    bench.branch |= {"augmentation": GOOD, "embedding_dim": 2}
    bench.out = tmp_path / "another node's"
    assert bench.bring() == {"branch"}


def test_the_longest_branch_starts_first_and_those_that_share_a_set_after_one_if_any(generating, monkeypatch):
    began = []
    monkeypatch.setattr(launch, "_launch", lambda ordered, *_: began.extend(b.branch_id for b in ordered) or {})
    branches = [branch(str(steps), training={"steps": steps}) for steps in (10, 1000, 100)]
    launch.launch(branches, generating.job(), make_table().select([]))
    assert began == ["1000", "100", "10"]
    wanted = {"first": GOOD, "second": GOOD, "plain": {}, "third": GOOD, "other": HOPELESS}
    branches, job = [branch(name, augmentation=clips) for name, clips in wanted.items()], generating.job()
    assert [b.branch_id for b in in_order(branches, job)] == ["first", "other", "plain", "second", "third"]
    others = [branch(augmentation=GOOD, channel="far"), *branches]
    assert [len(set_folders(some, job)) for some in (branches, others, branches[2:3])] == [2, 3, 0]
    assert set_folders(branches, generating.job(training="of others"))[0] not in set_folders(branches, job)
    never, rare = (branch(augmentation={"generated": {**GENERATOR, "fill": fill}}) for fill in (0.1, 0.5))
    index = generating.dataset.index
    assert [nothing_rare(some, index) for some in ([never, rare], [rare, branch()])] == [True, False]
    assert [generated_clips(spec, job, index, None, print) for spec in (never.spec, BranchSpec())] == [None, None]


def done(work, subject, report=print):
    return process.in_own_process(process.packed(subject), process.packed((work,)), report)


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
def test_each_call_has_a_process_whose_reports_come_in_order_whose_end_is_told_and_only_bad_luck_tried_again():
    heard = []
    assert [done(counting, some, lambda *values: heard.append(values)) for some in ([1, 2, 3], [4])] == [6, 4]
    assert [number for number, _ in heard] == [1, 2, 3, 4]
    assert len({heard[0][1], heard[3][1], os.getpid()}) == 3
    for how, told in (
        (InputError("it is wrong; mend it"), r"^it is wrong; mend it$"),
        (ValueError("it is odd"), r"in ending\n(.|\n)*\nValueError: it is odd$"),
        (TimeoutError("it was slow"), r"in ending\n(.|\n)*\nTimeoutError: it was slow$"),
        (signal.SIGKILL, process.KILLED),
        (signal.SIGSEGV, r"died of SIGSEGV$"),
        (-3, r"ended with exit code 3$"),
    ):
        end = process.WorkFailed if isinstance(how, Exception) else process.ProcessDied
        with pytest.raises(end, match=told) as died:
            done(ending, how)
        assert (process.KILLED in str(died.value)) == (how == signal.SIGKILL)
        assert getattr(died.value, "may_pass", False) == isinstance(how, TimeoutError)
    bad_luck = [OSError(errno.EIO, "Input/output error"), ConnectionResetError(errno.ECONNRESET, "reset by peer")]
    bad_luck += [TimeoutError(), StorageAway(), MemoryError(), torch.AcceleratorError("CUDA error: ECC error")]
    faults = [ImportError("libtorchaudio.so: undefined symbol"), IndexError("out of range"), InputError("wrong")]
    faults += [PermissionError(errno.EACCES, "Permission denied"), OSError(errno.ENOSPC, "No space left on device")]
    assert [process.may_pass(error) for error in (*bad_luck, *faults)] == [True] * 6 + [False] * 5


@pytest.mark.slow
def test_it_ends_with_its_parent_and_when_that_stops_listening(tmp_path):
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
