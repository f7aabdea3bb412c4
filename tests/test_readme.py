"""Every command of the README, all of docs/api.md and the notebook run, in their order, on small data."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress

import pytest

from branches.data.synthetic import SyntheticSize, write_dataset
from scoring.metrics import official_metrics
from scoring.table import read_table, write_table
from tests.commands import TUTTI, answers, free_port, tutti, tutti_here
from tests.finished import NAME
from tests.fusion.pools import make_pool
from tests.test_docs import ROOT, blocks

# The finished run of a small system in place of a large one, and data that two cores get through.
STAND_FOR = {"/data/dcase2026": "data", "/data/mine": "mine", "fan": "rotor"}
# The tests run in an environment, `make test` runs this test, and the others have tests of their own or need a network.
ELSEWHERE = "make ", "pip install ", ". .venv/bin/activate", "tutti ui ", "tutti submit ", "tutti data fetch ", "open "
pytestmark = pytest.mark.slow(seconds=100)


@pytest.fixture
def folder(run, tmp_path, monkeypatch):
    copy = run.copy(tmp_path)
    for name in ("runs", "scores", "normal", "recordings"):
        (tmp_path / name).mkdir()
    copy.out.rename(tmp_path / "runs" / "first")
    rows = ["table,family,config,seed"]
    for name, table in make_pool(("fan", "pump"), 6).items():
        write_table(table, tmp_path / "scores" / f"{name}.parquet")
        rows.append(f"{name},one,{name[0]},{name[1]}")
    (tmp_path / "scores" / "index.csv").write_text("\n".join(rows))
    for clip in run.clips("rotor", "train"):
        for place in ("clip.wav", "normal", "recordings"):
            shutil.copy(clip, tmp_path / place)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def filled(words, folder):
    """A command with what its words stand for, and patterns expanded as a shell does."""
    for word in words:
        if "*" in word:
            yield from (str(path.relative_to(folder)) for path in sorted(folder.glob(word)))
        elif word == "s2":  # shown, planned and run from its file, and known by its name from then on
            yield f"{NAME}.yaml" if words[1] in ("show", "plan", "run") else NAME
        else:
            yield STAND_FOR.get(word, word).replace("/s2/", f"/{NAME}/")


def test_the_commands_run_in_their_order(folder):
    lines = [line for block in blocks(ROOT / "README.md", "sh") for line in block.splitlines()]
    for words in (shlex.split(line, comments=True) for line in lines if not line.startswith(ELSEWHERE)):
        if "s5" in words:
            continue  # all of the report, with BEATs
        if words[1:2] == ["run"]:  # which starts Ray, and that in a process of its own
            done = tutti(*[*filled(words, folder)][1:])
            assert done.returncode == 0, done.stderr
        elif words:
            here = tutti_here(*[*filled(words, folder)][1:])
            assert here.exit_code == 0, f"{' '.join(words)}\n{here.stderr}"
    assert (folder / "runs" / "press" / "report.html").exists()


def test_make_demo_is_the_demo_whose_store_is_shown(dataset, tmp_path):
    demo = tmp_path / "runs" / "demo"
    shutil.copytree(dataset, demo / "data")
    done = tutti("demo", "--out", demo, "--set", "branch.training.steps=4")
    assert done.returncode == 0, done.stderr
    assert "/tutti demo --out runs/demo\n" in (ROOT / "Makefile").read_text()
    assert (demo / "report.html").exists()
    assert len(list((demo / "submission" / "demo").rglob("*.csv"))) == 4
    port = free_port()
    command, nowhere = [TUTTI, "ui", "--out", "runs/demo", "--port", str(port)], subprocess.DEVNULL
    server = subprocess.Popen(command, cwd=tmp_path, stdout=nowhere, stderr=nowhere, start_new_session=True)
    try:
        assert "mlflow" in answer(f"http://127.0.0.1:{port}/").lower()
        server.terminate()
        server.wait(timeout=60)
        assert not answers(port)  # nothing stays behind
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGTERM)


def answer(url: str, seconds: int = 60) -> str:
    for _ in range(2 * seconds):
        with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:
            return response.read().decode()
        time.sleep(0.5)
    raise AssertionError(f"{url} does not answer")


def execute(code, folder):
    """Code in a Python of its own: MLflow puts a model's code in the place of tutti's."""
    (folder / "script.py").write_text(code)
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "script.py"], capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr
    return official_metrics(read_table(folder / "fused.parquet"))


def test_the_page_of_the_interface(run, tmp_path):
    write_dataset(tmp_path / "data", SyntheticSize(8, 3, 3, 1.0), machines=["rotor", "pump"])
    for source, place in (("branches", "branches"), (f"systems/{NAME}", "systems/s2")):
        shutil.copytree(run.out / source, tmp_path / "runs" / "first" / place)
    shutil.copytree(run.model, tmp_path / "model")
    shutil.copy(run.clips("rotor")[0], tmp_path / "clip.wav")
    shown = blocks(ROOT / "docs" / "api.md", "python")
    assert execute("\n".join(shown).replace('"fan"', '"rotor"'), tmp_path).machines.keys() == {"rotor", "pump"}


def test_the_notebook(tmp_path):
    notebook = json.loads((ROOT / "docs" / "own_embeddings.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    fused = execute("\n".join("".join(cell["source"]) for cell in cells), tmp_path)
    assert fused.omega > 55  # better than chance
    assert len(list((tmp_path / "submission").iterdir())) == 2 * len(fused.machines)
