"""What a packaged ensemble consists of, and that it needs nothing else."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from orchestrator.ledger.folders import read_record, write_record
from orchestrator.model.ensemble import Ensemble
from orchestrator.model.export import REQUIRED, export_system
from orchestrator.model.manifest import CLIPS, MANIFEST, package_of, read_manifest
from scoring.errors import InputError
from scoring.table import metadata_of, read_table, write_table
from tests.commands import tutti_here
from tests.finished import BACKBONE, NAME, manifest_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]


@pytest.fixture
def copied(model, tmp_path):
    """A copy of the model, to be damaged."""
    return shutil.copytree(model, tmp_path / "copy")


def by_name(model):
    """Branch identifiers by the names of their members."""
    return {member["name"].rpartition("/")[0]: member["branch_id"] for member in manifest_of(model)["members"]}


def test_a_shared_backbone_is_stored_once_and_a_lora_branch_is_its_adapters(model):
    package, names = package_of(model), by_name(model)
    places = {name: manifest_of(model)["branches"][id]["backbone"]["path"] for name, id in names.items()}
    (stored,) = (package / "backbones").iterdir()
    assert stored.read_bytes() == BACKBONE.read_bytes()
    assert [places.pop(f"frozen/{name}") for name in ("built_in", "log_mel")] == ["tiny", "log_mel"]
    assert set(places.values()) == {f"backbones/{stored.name}"}
    trained = {path.stem for path in (package / "branches").iterdir()}
    assert trained == {names[f"trained/{name}"] for name in ("full", "lora", "generated")}
    banks = {member.bank_file for member in read_manifest(package).members}
    assert {f"banks/{path.name}" for path in (package / "banks").iterdir()} == banks
    lora, full = (package / "branches" / f"{names[name]}.pt" for name in ("trained/lora", "trained/full"))
    changed = torch.load(lora, weights_only=True)["changed"]
    assert {name for name in changed if "lora" not in name} == {"projection.weight", "projection.bias"}
    assert lora.stat().st_size < full.stat().st_size / 10


def test_nothing_in_it_is_a_pickled_object(model):
    described = yaml.safe_load((model / "MLmodel").read_text())["flavors"]["python_function"]
    assert "python_model" not in described
    files = [path for path in model.rglob("*") if path.is_file()]
    assert {path.suffix for path in files if "code" not in path.relative_to(model).parts} == {
        *("", ".py", ".json", ".yaml", ".txt", ".pt", ".npy", ".parquet"),
    }
    for path in files:
        if path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".npy":
            np.load(path, allow_pickle=False)
        else:
            assert path.read_bytes()[:1] != b"\x80", path


def test_it_asks_for_the_packages_that_its_code_imports(model):
    assert (model / "requirements.txt").read_text().splitlines()[0].startswith("torch==")
    packages = {path.name for path in (model / "code").iterdir()}
    assert packages == {"orchestrator", "branches", "fusion", "scoring"}
    code = "import sys, orchestrator.model.mlflow_model; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=model / "code", check=True
    ).stdout.split()
    later = {"scikit-learn", "torchaudio", "fsspec"}  # when something is scored or fetched
    assert {*REQUIRED} - later <= {*loaded}
    assert {name for name in loaded if (model / "code" / name).exists()} == packages


ALONE = """
import json, sys

def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith(tuple(forbidden)):
        raise PermissionError(arguments[0])

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "hyperopt", "rich", "cluster", "matplotlib"):
            raise ModuleNotFoundError(name)

model, forbidden, clips = json.loads(sys.argv[1])
content = {machine: [open(path, "rb").read() for path in paths] for machine, paths in clips.items()}
sys.addaudithook(refuse)
sys.meta_path.insert(0, NotInstalled())
import mlflow.pyfunc, pandas
loaded = mlflow.pyfunc.load_model(model)
rows = [{"machine": machine, "audio": audio} for machine, some in content.items() for audio in some]
print(json.dumps(loaded.predict(pandas.DataFrame(rows)).to_dict("records")))
"""


def test_it_works_alone(run, copied, tmp_path):
    """Moved, in another folder, without tutti's own code, the run and its checkpoint, and with few packages."""
    clips = {machine: [str(path) for path in run.clips(machine)] for machine in ("rotor", "pump")}
    code = [str(ROOT / name) for name in ("orchestrator", "branches", "fusion", "scoring", "cluster")]
    argument = json.dumps([str(copied), [str(run.folder), *code], clips])
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [sys.executable, "-c", ALONE, argument]
    asked = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert asked.returncode == 0, asked.stderr
    rows = json.loads(asked.stdout.splitlines()[-1])
    expected = [score for machine in clips for score in run.fused(machine)["score"].to_pylist()]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
    assert all(row["anomaly"] == (row["score"] > row["threshold"]) for row in rows)
    assert sum(json.loads(rows[0]["contributions"]).values()) == pytest.approx(rows[0]["score"])


@pytest.mark.parametrize("part", ["backbones/*.pt", "branches/*.pt", "banks/*.npy", CLIPS])
def test_a_damaged_or_missing_file_is_named(run, copied, part):
    """When the model is opened."""
    victim = sorted(package_of(copied).glob(part))[0]
    content = victim.read_bytes()
    for damage in (content[:-1], content[:100], b"", bytes(len(content))):
        victim.write_bytes(damage)
        with pytest.raises(InputError, match=victim.name):
            Ensemble(copied)
    victim.unlink()
    refused = tutti_here("score", copied, run.clips("rotor")[0])
    assert refused.exit_code == 2
    assert victim.name in refused.stderr.splitlines()[-1]
    (package_of(copied) / MANIFEST).write_text("{}")
    with pytest.raises(InputError, match="damaged, or of another version of tutti"):
        Ensemble(copied)
    with pytest.raises(InputError, match="no packaged ensemble; `tutti export` makes one"):
        Ensemble(run.out)


@pytest.fixture
def moved(run, tmp_path):
    """A copy of the run's folder alone, to be damaged."""
    return shutil.copytree(run.out, tmp_path / "moved")


def test_a_run_that_was_moved_gives_the_same_package(moved, model, tmp_path):
    out = tmp_path / "folder" / "again"
    assert export_system(moved, None, out) == out
    assert manifest_of(out) == manifest_of(model)


def test_what_has_no_weight_is_left_out(moved, tmp_path):
    path = moved / "systems" / NAME / "result.json"
    result = json.loads(path.read_text())
    lora = [b["table"] for b in result["branches"] if "/lora" in b["branch"]]
    result["delivered"]["table_weights"] |= dict.fromkeys(lora, 0.0)
    path.write_text(json.dumps(result))
    small = manifest_of(export_system(moved, NAME, tmp_path / "small"))
    assert len(small["members"]) == len(result["branches"]) - len(lora)
    assert lora[0].partition("/")[0] not in json.dumps(small)


def test_what_cannot_be_exported_is_named_and_leaves_nothing(moved, model, tmp_path):
    def refusal(*arguments):
        refused = tutti_here("export", *arguments)
        assert refused.exit_code == 2
        return refused.stderr.splitlines()[-1]

    out = ("--out", tmp_path / "out")
    assert "no result of system 'other'; there are golden" in refusal(moved, "other", *out)
    assert "no results in it; `tutti run` makes them" in refusal(tmp_path, *out)
    assert "exists already; give another --out" in refusal(moved, "--out", model)
    second = shutil.copytree(moved / "systems" / NAME, moved / "systems" / "second")
    assert "name one of its systems, golden, second" in refusal(moved, *out)
    shutil.rmtree(second)
    weights = sorted(moved.glob("branches/*/branch.pt"))[0]
    weights.write_bytes(weights.read_bytes()[:-1])
    assert f"{weights}: lost or damaged; `tutti run` makes it again" in refusal(moved, NAME, *out)
    shutil.rmtree(weights.parent)
    assert f"{weights.parent / 'record.json'}: lost or damaged" in refusal(moved, *out)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


def test_a_backbone_that_is_gone_is_named(moved, tmp_path):
    for path in moved.glob("branches/*/tables/*.parquet"):
        table, record = read_table(path), read_record(path.parents[1])
        gone = {k: re.sub(r'[^"]*pretrained\.pt', "/nowhere/b.pt", v) for k, v in metadata_of(table).items()}
        files = {f"tables/{path.name}": write_table(table.replace_schema_metadata(gone), path)}
        write_record(path.parents[1], record.model_copy(update={"files": {**record.files, **files}}))
    refused = tutti_here("export", moved, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "a branch's backbone must lie where the run had it: /nowhere/b.pt: no such file" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]
