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

from branches.data.synthetic import SyntheticSize, write_dataset
from scoring.table import write_table
from tests.commands import SMALL_SYSTEM, TUTTI, free_port, tutti, tutti_here
from tests.fusion.pools import make_pool

README = Path(__file__).parent.parent / "README.md"
# A small system under the name of a large one, the tiny network, and data that two cores get through.
STAND_FOR = {
    "BEATs_iter3.pt": "tiny",
    "/data/dcase2026": "data",
    "/data/mine": "mine",
    "fan": "rotor",
}
ELSEWHERE = {
    "make demo": "tutti demo",
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


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with all that the commands name."""
    root = tmp_path_factory.mktemp("readme")
    size = SyntheticSize(8, 3, 3, 1.0)
    write_dataset(root / "data", size, machines=["rotor", "pump"])
    write_dataset(root / "runs" / "demo" / "data", size, machines=["rotor", "pump"])
    (root / "s2.yaml").write_text(SMALL_SYSTEM.replace("name: small", "name: s2"))
    (root / "scores").mkdir()
    rows = ["table,family,config,seed"]
    for name, table in make_pool(("fan", "pump"), 6).items():
        write_table(table, root / "scores" / f"{name}.parquet")
        rows.append(f"{name},one,{name[0]},{name[1]}")
    (root / "scores" / "index.csv").write_text("\n".join(rows))
    clips = sorted((root / "data" / "rotor" / "train").iterdir())
    shutil.copy(clips[0], root / "clip.wav")
    for folder in ("normal", "recordings"):
        (root / folder).mkdir()
        for clip in clips:
            shutil.copy(clip, root / folder)
    return root


def filled(words: list[str], place: Path) -> list[str]:
    """A command with what its words stand for, and patterns expanded as a shell does."""
    found: list[str] = []
    for word in words:
        matches = [str(path.relative_to(place)) for path in sorted(place.glob(word))] if "*" in word else []
        found += matches or [STAND_FOR.get(word, word)]
    # A system is planned and run from its file, and known by its name from then on.
    return ["s2.yaml" if word == "s2" and words[1] in ("plan", "run") else word for word in found]


def test_the_commands_run_in_their_order(place, monkeypatch):
    monkeypatch.chdir(place)
    for words in commands():
        if " ".join(words) in ELSEWHERE:
            continue
        if words[:2] in (["tutti", "ui"], ["tutti", "submit"]):
            continue  # see below, and tests/cluster/test_jobs.py
        arguments = filled(words, place)[1:]
        if words[1] == "run":  # which starts Ray, and that in a process of its own
            done = tutti(*arguments)
            assert done.returncode == 0, done.stderr
        else:
            here = tutti_here(*arguments)
            assert here.exit_code == 0, f"{' '.join(words)}\n{here.stderr}"
    assert (place / "runs" / "first" / "report.html").exists()


def test_the_demo_and_its_store(place):
    """`make demo` is a `tutti demo`; here with fewer steps and a smaller data set, which it finds in its place."""
    # Without what `make test` hands down, which has make speak of the folders it enters and leaves.
    alone = {
        name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "GNUMAKEFLAGS"))
    }
    dry = subprocess.run(
        ["make", "--no-print-directory", "-n", "demo"],
        cwd=README.parent,
        env=alone,
        capture_output=True,
        text=True,
        check=True,
    )
    assert dry.stdout.splitlines()[-1].endswith("/tutti demo --out runs/demo")
    demo = tutti("demo", "--out", place / "runs" / "demo", "--set", "branch.training.steps=4")
    assert demo.returncode == 0, demo.stderr
    assert (place / "runs" / "demo" / "report.html").exists()
    assert list((place / "runs" / "demo" / "submission").rglob("*.csv"))
    port = free_port()
    server = subprocess.Popen(
        [TUTTI, "ui", "--out", "runs/demo", "--port", str(port)],
        cwd=place,
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
