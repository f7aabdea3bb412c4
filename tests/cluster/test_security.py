"""What comes from outside is never executed, in the code and with a file that would."""

from __future__ import annotations

import ast
import pickle
from pathlib import Path

import pytest
import torch
import yaml

from branches.beats.checkpoint import load_beats
from orchestrator.system import load_system
from scoring.errors import InputError

ROOT = Path(__file__).parents[2]
PACKAGES = ("branches", "scoring", "fusion", "cluster", "orchestrator")


def calls(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            given = {k.arg: getattr(k.value, "value", None) for k in node.keywords}
            yield ast.unparse(node.func), given, node.lineno


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_unpickles_or_executes(package):
    for path in (ROOT / package).rglob("*.py"):
        tree = ast.parse(path.read_text())
        imported = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        assert not imported & {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal"}, path
        for name, given, line in calls(tree):
            where = f"{path}:{line}"
            assert name != "yaml.load", where
            assert name != "torch.load" or given.get("weights_only") is True, where
            assert name != "np.load" or not given.get("allow_pickle"), where
            assert not given.get("shell"), where


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_checkpoint_that_would_run_code(tmp_path):
    sprung = tmp_path / "sprung"
    torch.save({"cfg": {}, "model": Trap(sprung)}, tmp_path / "trap.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(sprung)))
    for name in ("trap.pt", "plain.pt"):
        with pytest.raises(InputError):
            load_beats(tmp_path / name)
    assert not sprung.exists()


def test_a_system_file_that_would_run_code(tmp_path):
    file = tmp_path / "trap.yaml"
    file.write_text(f"name: !!python/object/apply:pathlib.Path.touch [{tmp_path / 'sprung'}]\n")
    with pytest.raises(InputError, match="not YAML"):
        load_system(str(file))
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "a\nb"])
def test_a_name_that_would_leave_its_folder(name, tmp_path):
    file = tmp_path / "system.yaml"
    file.write_text(yaml.safe_dump({"name": name, "subsystems": {"a": {"b": {}}}}))
    with pytest.raises(InputError, match="name: String should match"):
        load_system(str(file))
