"""What comes from outside is never executed (docs/security.md): in the code, and with files that would."""

import ast
import pickle
from pathlib import Path

import pytest
import torch

from branches.beats.checkpoint import load_beats
from orchestrator.system import load_system
from scoring.errors import InputError

ROOT = Path(__file__).parents[2]
PACKAGES = ("branches", "scoring", "fusion", "cluster", "orchestrator")
FORBIDDEN = {"pickle", "cloudpickle", "joblib", "dill", "shelve", "marshal", "eval", "exec", "os.system"}
FORBIDDEN |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.Loader", "yaml.UnsafeLoader", "yaml.FullLoader"}


def uses(tree):
    """What a file imports and calls; a call with what would make it execute what it is given."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.Attribute):
            yield ast.unparse(node)
        elif isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            yield name
            if name == "torch.load" and given.get("weights_only") != "True":
                yield "pickle"
            if "allow_pickle" in given or "shell" in given:
                yield "exec"


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_unpickles_or_executes(package):
    for path in (ROOT / package).rglob("*.py"):
        assert not FORBIDDEN & set(uses(ast.parse(path.read_text()))), path


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_a_file_that_would_run_code_is_refused_and_does_not(tmp_path):
    sprung = tmp_path / "sprung"
    torch.save({"cfg": {}, "model": Trap(sprung)}, tmp_path / "trap.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap(sprung)))
    (tmp_path / "trap.yaml").write_text(f"name: !!python/object/apply:pathlib.Path.touch [{sprung}]\n")
    for read, name in ((load_beats, "trap.pt"), (load_beats, "plain.pt"), (load_system, "trap.yaml")):
        with pytest.raises(InputError):
            read(str(tmp_path / name))
    assert not sprung.exists()
