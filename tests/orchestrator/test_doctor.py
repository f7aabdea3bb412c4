"""The doctor, on this installation and on ones that are broken on purpose with real files."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from branches.data.synthetic import SyntheticSize, write_dataset
from orchestrator.doctor import check_installation
from orchestrator.tracking.tracker import open_tracker
from tests.commands import SMALL_SYSTEM, TUTTI, tutti_here

NOWHERE = ("--address", "127.0.0.1:1")  # spares the start of a Ray, and is a problem of its own
TORCHAUDIO = "raise OSError('libtorchaudio.so: undefined symbol: torch_dtype')"


def checks(run):
    return {check["name"]: check for check in json.loads(run.stdout)["checks"]}


def installed(folder, name, version, code=""):
    """Another version of a package, as pip would leave it."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    if code:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(code)


def broken(folder, *arguments):
    """What the command ends with where `folder` comes first on Python's path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]])}
    run = subprocess.run([TUTTI, *map(str, arguments)], capture_output=True, text=True, timeout=240, env=env)
    assert run.returncode == 2, run.stderr
    assert "Traceback" not in run.stderr
    return run


@pytest.mark.slow
def test_a_sound_place_with_a_local_session(tmp_path):
    data, out = tmp_path / "data", tmp_path / "new" / "out"
    write_dataset(data, SyntheticSize(3, 2, 1, 1.0), machines=["rotor", "pump"])
    run = tutti_here("doctor", "--data", data, "--out", out, "--json")
    assert run.exit_code == 0, run.stdout
    found = checks(run)
    assert {name: check["state"] for name, check in found.items() if not name.startswith("gpu")} == dict.fromkeys(
        ("packages", "torch", "ray", "mlflow", "data", "disk"), "ok"
    )
    assert f"{os.cpu_count()} CPU" in found["ray"]["text"]
    assert "authentication: token" in found["ray"]["text"]
    assert "clips of 2 machines" in found["data"]["text"]
    assert not out.parent.exists()  # nothing is made


def test_places_that_cannot_be_used(tmp_path):
    run = tutti_here(
        "doctor", *NOWHERE, "--data", tmp_path, "--out", tmp_path, "--tracking-uri", "http://127.0.0.1:1"
    )  # fmt: skip
    assert run.exit_code == 2
    lines = run.stdout.splitlines()
    for start in (
        "problem  ray: no Ray cluster answers at 127.0.0.1:1",
        "problem  mlflow: no MLflow server answers at http://127.0.0.1:1",
        f"problem  data: {tmp_path}: not a data set",
        "ok       disk: ",
    ):
        assert any(line.startswith(start) for line in lines), start
    assert "Error: 3 problems: ray, mlflow, data" in run.stderr


def test_a_store_that_is_none(tmp_path):
    (tmp_path / "mlflow.db").write_text("not a database " * 100)
    found = checks(tutti_here("doctor", *NOWHERE, "--out", tmp_path, "--json"))
    assert found["mlflow"]["state"] == "problem"
    assert "no MLflow store at sqlite:///" in found["mlflow"]["text"]


def test_a_moved_runs_store_stays_as_it_is(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    open_tracker(None, out, "experiment")
    moved = out.rename(tmp_path / "moved")
    before = (moved / "mlflow.db").read_bytes()
    found = checks(tutti_here("doctor", *NOWHERE, "--out", moved, "--json"))
    assert found["mlflow"]["state"] == "ok"
    assert (moved / "mlflow.db").read_bytes() == before


def test_more_clips_than_room(tmp_path):
    clip = tmp_path / "data" / "fan" / "train" / "section_00_source_train_normal_0000_noAttribute.wav"
    clip.parent.mkdir(parents=True)
    with open(clip, "wb") as file:
        file.truncate(2 * shutil.disk_usage(tmp_path).free)  # takes no room itself
    found = checks(tutti_here("doctor", *NOWHERE, "--data", tmp_path / "data", "--out", tmp_path / "out", "--json"))
    assert found["disk"]["state"] == "warning"
    assert "decoded clips take about" in found["disk"]["text"]
    assert "fan section 0 has 1 training clips" in found["data"]["text"]


def test_this_installation_loads():
    check_installation()


@pytest.mark.slow
def test_broken_installations(tmp_path):
    """An old package, and one that does not load."""
    installed(tmp_path, "hyperopt", "0.2.7")
    installed(tmp_path, "pyarrow", metadata.version("pyarrow"), "raise ImportError('libarrow.so: no such file')")
    run = broken(tmp_path, "doctor", "--json", *NOWHERE, "--data", tmp_path)
    found = checks(run)
    problems = {c["text"]: c["remedy"] for c in json.loads(run.stdout)["checks"] if c["state"] == "problem"}
    assert any("requirement hyperopt>=" in text for text in problems)
    remedy = problems["pyarrow does not load: libarrow.so: no such file"]
    assert remedy == "pip install --upgrade --force-reinstall pyarrow"
    assert found["data"]["text"] == "ImportError: libarrow.so: no such file"
    if not torch.cuda.is_available():
        assert found["gpu"]["state"] == "warning"


@pytest.mark.slow
def test_a_run_with_torchaudio_of_another_torch_ends_before_anything_is_decoded(tmp_path):
    write_dataset(tmp_path / "data", SyntheticSize(4, 1, 1, 1.0), machines=["rotor"])
    (tmp_path / "small.yaml").write_text(SMALL_SYSTEM)
    installed(tmp_path / "broken", "torchaudio", metadata.version("torchaudio"), TORCHAUDIO)
    out = tmp_path / "out"
    run = broken(tmp_path / "broken", "run", tmp_path / "small.yaml", "--data", tmp_path / "data", "--out", out)
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: torchaudio does not load: libtorchaudio.so: undefined symbol: torch_dtype; ")
    assert last.endswith("; pip install --upgrade --force-reinstall torch torchaudio")
    assert "starting Ray" not in run.stderr
    assert not list(out.glob("cache/*"))
