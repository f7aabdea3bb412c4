"""The doctor, on this installation and on ones that are broken on purpose with real files."""

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from orchestrator.doctor import check_installation
from tests.commands import SMALL_SYSTEM, TUTTI, tutti_here

pytestmark = pytest.mark.slow

NOWHERE = ("--address", "127.0.0.1:1")  # spares the start of a Ray, and is a problem of its own


def checks(run):
    return {check["name"]: check for check in json.loads(run.stdout)["checks"]}


def installed(folder, name, version, code=""):
    """Another version of a package, as pip would leave it."""
    metadata_file = folder / f"{name}-{version}.dist-info" / "METADATA"
    metadata_file.parent.mkdir(parents=True)
    metadata_file.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
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


def test_a_sound_place_with_a_local_session_and_the_store_of_a_moved_run(dataset, store, tmp_path):
    shutil.copy(store, tmp_path / "mlflow.db")
    before = (tmp_path / "mlflow.db").read_bytes()
    run = tutti_here("doctor", "--data", dataset, "--out", tmp_path, "--json")
    assert run.exit_code == 0, run.stdout
    found = checks(run)
    states = {name: check["state"] for name, check in found.items() if not name.startswith("gpu")}
    assert states == dict.fromkeys(("packages", "torch", "ray", "mlflow", "data", "disk"), "ok")
    told = {"ray": f"{os.cpu_count()} CPU", "data": "50 clips of 2 machines", "mlflow": "mlflow.db answers"}
    assert {name: text in found[name]["text"] for name, text in told.items()} == dict.fromkeys(told, True)
    assert "authentication: token" in found["ray"]["text"]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]  # nothing is made
    assert (tmp_path / "mlflow.db").read_bytes() == before


def test_places_that_cannot_be_used(tmp_path):
    (tmp_path / "text.db").write_text("not a database " * 100)
    places = ["--data", tmp_path, "--out", tmp_path, "--tracking-uri", f"sqlite:///{tmp_path / 'text.db'}"]
    run = tutti_here("doctor", *NOWHERE, *places)
    problems = ("ray: no Ray cluster answers at 127.0.0.1:1", "mlflow: no MLflow store at", f"data: {tmp_path}: not a")
    for start in ("ok       disk: ", *(f"problem  {problem}" for problem in problems)):
        assert f"\n{start}" in run.stdout
    assert (run.exit_code, run.stderr.splitlines()[-1]) == (2, "Error: 3 problems: ray, mlflow, data")


def test_more_clips_than_room(tmp_path):
    clip = tmp_path / "fan" / "train" / "section_00_source_train_normal_0000_noAttribute.wav"
    clip.parent.mkdir(parents=True)
    with open(clip, "wb") as file:
        file.truncate(2 * shutil.disk_usage(tmp_path).free)  # takes no room itself
    found = checks(tutti_here("doctor", *NOWHERE, "--data", tmp_path, "--out", tmp_path / "out", "--json"))
    assert (found["disk"]["state"], "decoded clips take about" in found["disk"]["text"]) == ("warning", True)
    assert "fan section 0 has 1 training clips" in found["data"]["text"]
    assert found["mlflow"]["text"].endswith("out/mlflow.db will be made by the first run")


def test_broken_installations(tmp_path):
    """An old package, and one that does not load."""
    check_installation()  # this one does
    installed(tmp_path, "hyperopt", "0.2.7")
    installed(tmp_path, "pyarrow", metadata.version("pyarrow"), "raise ImportError('libarrow.so: no such file')")
    out = tmp_path / "new" / "out"
    run = broken(tmp_path, "doctor", "--json", *NOWHERE, "--data", tmp_path, "--out", out)
    problems = {c["text"]: c["remedy"] for c in json.loads(run.stdout)["checks"] if c["state"] == "problem"}
    assert any("requirement hyperopt>=" in text for text in problems)
    remedy = problems["pyarrow does not load: libarrow.so: no such file"]
    assert remedy == "pip install --upgrade --force-reinstall pyarrow"
    assert checks(run)["data"]["text"] == "ImportError: libarrow.so: no such file"
    assert torch.cuda.is_available() or checks(run)["gpu"]["state"] == "warning"
    assert not out.parent.exists()


def test_a_run_with_torchaudio_of_another_torch_ends_before_anything_is_decoded(dataset, store, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL_SYSTEM)
    code = "raise OSError('libtorchaudio.so: undefined symbol: torch_dtype')"
    installed(tmp_path / "broken", "torchaudio", metadata.version("torchaudio"), code)
    options = ["--data", dataset, "--out", tmp_path / "out", "--tracking-uri", f"sqlite:///{store}"]
    run = broken(tmp_path / "broken", "run", tmp_path / "small.yaml", *options)
    cause, *_, remedy = run.stderr.strip().splitlines()[-1].split("; ")
    assert cause == "Error: torchaudio does not load: libtorchaudio.so: undefined symbol: torch_dtype"
    assert remedy == "pip install --upgrade --force-reinstall torch torchaudio"
    assert "starting Ray" not in run.stderr
    assert not list((tmp_path / "out").glob("cache/*"))
