"""The house's rules: who may import whom, and what must not be loaded."""

import ast
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("scoring", "fusion", "branches", "cluster", "orchestrator")
FORBIDDEN = {
    "scoring": {"torch", "ray", "mlflow", "fusion", "branches", "cluster", "orchestrator"},
    "fusion": {"torch", "mlflow", "branches", "cluster", "orchestrator"},
    "branches": {"ray", "mlflow", "fusion", "cluster", "orchestrator"},
    "cluster": {"mlflow", "fusion", "branches", "orchestrator"},
}
FILES = [path for package in OURS for path in (ROOT / package).rglob("*.py")]
MODULES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def imported(tree, annotations=True):
    """What import statements, those in functions too, name with its module; also what annotations alone need."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif annotations or not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imported(node, annotations)


IMPORTED = {path: list(imported(ast.parse(path.read_text()))) for path in FILES}


def test_no_import_runs_backwards_or_in_a_circle_and_one_file_rests_on_what_this_ray_does_not_publish():
    packages = {path: {name.partition(".")[0] for name in IMPORTED[path]} for path in FILES}
    of = {path: path.relative_to(ROOT).parts[0] for path in FILES}
    assert not {path: found for path, names in packages.items() if (found := names & FORBIDDEN.get(of[path], set()))}
    assert [p.name for p, names in packages.items() if of[p] == "fusion" and "ray" in names] == ["on_ray.py"]
    graph = {}
    for module, path in MODULES.items():
        names = imported(ast.parse(path.read_text()), annotations=False)
        graph[module] = {n if n in MODULES else n.rpartition(".")[0] for n in names} & MODULES.keys() - {module}
    TopologicalSorter(graph).prepare()
    assert version("ray").startswith("2.60.")  # of another see whether its Node has all_processes, kill_all_processes
    private = [path.name for path, names in IMPORTED.items() if any(n.startswith("ray._private") for n in names)]
    assert private == ["processes.py"]


def test_a_file_is_read_in_one_sitting_has_a_name_of_its_own_and_is_in_the_wheel():
    """Packages may be called alike, and commands after what they are for."""
    assert not {path: n for path in FILES if (n := len(path.read_text().splitlines())) > 400}
    names = [path.name for name, path in MODULES.items() if not name.startswith("orchestrator.commands.")]
    assert not {name for name in names if names.count(name) > 1} - {"__init__.py"}
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert all((path.parent / "__init__.py").exists() for path in FILES)
    for package in OURS:
        data = {path for pattern in patterns.get(package, []) for path in (ROOT / package).glob(pattern)}
        files = {path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts}
        assert not files - data - {*FILES}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("orchestrator.cli, orchestrator.doctor", "torch ray mlflow numpy"),
        ("scoring.banks, fusion.search, orchestrator.overview", "torch ray mlflow sklearn scipy.stats hyperopt"),
        ("orchestrator.submission.check", "torch ray mlflow sklearn scipy.stats hyperopt"),
        ("orchestrator.model.recordings", "torch._dynamo scipy.signal mlflow ray"),
        (
            "orchestrator.run, orchestrator.preflight, orchestrator.tracking.ui",
            "torch ray mlflow matplotlib scipy.stats hyperopt",
        ),
        ("branches.audio, branches.data.importing", "torch scipy.stats"),
        ("orchestrator.training.process", "torch mlflow sklearn scipy"),
    ],
)
def test_heavy_packages_are_not_loaded(module, absent):
    code = f"import sys, {module}; print([m for m in {absent.split()} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT) == "[]\n"
