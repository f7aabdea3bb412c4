"""Every command of the README runs, in its order, on small data; only what its words stand for is replaced."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import time
import urllib.request
from pathlib import Path

import pytest

from scoring.table import write_table
from tests.commands import TUTTI, free_port, tutti, tutti_here
from tests.finished import NAME
from tests.fusion.pools import make_pool

README = Path(__file__).parent.parent / "README.md"
# The finished run of a small system in place of a large one, and data that two cores get through.
STAND_FOR = {
    "BEATs_iter3.pt": "pretrained.pt",
    "/data/dcase2026": "data",
    "/data/mine": "mine",
    "fan": "rotor",
    "s2": NAME,
}
ELSEWHERE = {
    "make demo": "see below",
    "make test": "is what runs this test",
    "pip install --constraint constraints.txt .": "the tests run in an environment",
    "pip install --constraint constraints.txt tutti_asd-0.1.0-py3-none-any.whl": "the tests run in an environment",
    ". .venv/bin/activate": "the tests run in an environment",
}
pytestmark = pytest.mark.slow(seconds=100)


def commands() -> list[list[str]]:
    """The words of every command line in the README's shell blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    return [words for block in blocks for line in block.splitlines() if (words := shlex.split(line, comments=True))]


@pytest.fixture
def folder(run, tmp_path, monkeypatch):
    """The working folder, with all that the commands name."""
    copy = run.copy(tmp_path)
    (tmp_path / "runs").mkdir()
    copy.out.rename(tmp_path / "runs" / "first")
    (tmp_path / "scores").mkdir()
    rows = ["table,family,config,seed"]
    for name, table in make_pool(("fan", "pump"), 6).items():
        write_table(table, tmp_path / "scores" / f"{name}.parquet")
        rows.append(f"{name},one,{name[0]},{name[1]}")
    (tmp_path / "scores" / "index.csv").write_text("\n".join(rows))
    clips = run.clips("rotor", "train")
    shutil.copy(clips[0], tmp_path / "clip.wav")
    for name in ("normal", "recordings"):
        (tmp_path / name).mkdir()
        for clip in clips:
            shutil.copy(clip, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def filled(words: list[str], folder: Path) -> list[str]:
    """A command with what its words stand for, and patterns expanded as a shell does."""
    found: list[str] = []
    for word in words:
        matches = [str(path.relative_to(folder)) for path in sorted(folder.glob(word))] if "*" in word else []
        found += matches or [STAND_FOR.get(word, word).replace("/s2/", f"/{NAME}/")]
    # A system is shown, planned and run from its file, and known by its name from then on.
    return [f"{NAME}.yaml" if word == NAME and words[1] in ("show", "plan", "run") else word for word in found]


def test_the_commands_run_in_their_order(folder):
    """Of the first run one branch is left to do; nothing has been made of the others."""
    for words in commands():
        if " ".join(words) in ELSEWHERE or words[:2] in (["tutti", "ui"], ["tutti", "submit"]):
            continue  # see below, and tests/cluster/test_jobs.py
        arguments = filled(words, folder)[1:]
        if words[1] == "run":  # which starts Ray, and that in a process of its own
            done = tutti(*arguments)
            assert done.returncode == 0, done.stderr
        else:
            here = tutti_here(*arguments)
            assert here.exit_code == 0, f"{' '.join(words)}\n{here.stderr}"
    assert (folder / "runs" / "press" / "report.html").exists()


@pytest.fixture(scope="module")
def demo(dataset, tmp_path_factory):
    """Folder of a demo with fewer steps and a smaller data set, which it finds in its place."""
    out = tmp_path_factory.mktemp("demo") / "runs" / "demo"
    shutil.copytree(dataset, out / "data")
    done = tutti("demo", "--out", out, "--set", "branch.training.steps=4")
    assert done.returncode == 0, done.stderr
    return out


def test_make_demo_is_the_demo(demo):
    # Without what `make test` hands down, which has make speak of the folders it enters and leaves.
    alone = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS", "GNUMAKEFLAGS"))}
    command = ["make", "--no-print-directory", "-n", "demo"]
    dry = subprocess.run(command, cwd=README.parent, env=alone, capture_output=True, text=True, check=True)
    assert dry.stdout.splitlines()[-1].endswith("/tutti demo --out runs/demo")
    assert (demo / "report.html").exists()
    assert len(list((demo / "submission" / "demo").rglob("*.csv"))) == 4


def test_the_demos_store_is_shown(demo):
    port = free_port()
    server = subprocess.Popen(
        [TUTTI, "ui", "--out", "runs/demo", "--port", str(port)],
        cwd=demo.parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        assert "mlflow" in answer(f"http://127.0.0.1:{port}/").lower()
        server.terminate()
        server.wait(timeout=60)
        with pytest.raises(OSError, match="refused"):  # nothing stays behind
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5)
    except BaseException:
        os.killpg(server.pid, signal.SIGTERM)
        raise


def answer(url: str, seconds: float = 60) -> str:
    """What a server answers, once it does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                return str(response.read().decode())
        except OSError:
            assert time.monotonic() < deadline, f"{url} does not answer"
            time.sleep(0.5)
