"""The house's rules: who may import whom, and what must not be loaded."""

import ast
import subprocess
import sys
import tomllib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
OURS = ("scoring", "fusion", "branches", "cluster", "orchestrator")
LINES = 400
SLOW = ("ray", "mlflow", "sklearn", "scipy.stats", "hyperopt")
FORBIDDEN = {
    "scoring": {"torch", "ray", "mlflow", "fusion", "branches", "cluster", "orchestrator"},
    "fusion": {"torch", "mlflow", "branches", "cluster", "orchestrator"},
    "branches": {"ray", "mlflow", "fusion", "cluster", "orchestrator"},
    "cluster": {"mlflow", "fusion", "branches", "orchestrator"},
}


def modules():
    """Every module of ours with its file."""
    files = [path for package in OURS for path in (ROOT / package).rglob("*.py")]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported(nodes):
    """What import statements among the nodes name, with its module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def packages(path):
    return {name.partition(".")[0] for name in imported(ast.walk(ast.parse(path.read_text())))}


def statements(tree):
    """All statements, those in functions too, but what is imported for annotations alone."""
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from statements(node)


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_runs_backwards(package):
    for path in (ROOT / package).rglob("*.py"):
        assert not packages(path) & FORBIDDEN[package], path
    assert [path.name for path in (ROOT / "fusion").glob("*.py") if "ray" in packages(path)] == ["on_ray.py"]


def test_there_is_no_circle_between_files():
    known, graph = modules(), {}
    for module, path in known.items():
        names = imported(statements(ast.parse(path.read_text())))
        graph[module] = {n if n in known else n.rpartition(".")[0] for n in names} & known.keys() - {module}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_a_file_is_read_in_one_sitting_and_its_name_says_which_it_is():
    """Packages may be called alike, and commands after what they are for."""
    assert not {name: n for name, path in modules().items() if (n := len(path.read_text().splitlines())) > LINES}
    names = [path.name for name, path in modules().items() if not name.startswith("orchestrator.commands.")]
    assert not {name for name in names if names.count(name) > 1} - {"__init__.py"}


def test_a_wheel_holds_every_file():
    """Packages that setuptools finds, and what else lies in them by the patterns of pyproject.toml."""
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in OURS:
        files = [path for path in (ROOT / package).rglob("*") if path.is_file() and "__pycache__" not in path.parts]
        assert not [p for p in files if p.suffix == ".py" and not (p.parent / "__init__.py").exists()]
        data = {path for pattern in patterns.get(package, []) for path in (ROOT / package).glob(pattern)}
        assert not {path for path in files if path.suffix != ".py"} - data


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("orchestrator.cli, orchestrator.doctor", ["torch", "ray", "mlflow", "numpy"]),
        ("scoring.banks, fusion.search, orchestrator.overview, orchestrator.submission.check", ["torch", *SLOW]),
        ("orchestrator.model.recordings", ["torch._dynamo", "scipy.signal", "mlflow", "ray"]),
        ("orchestrator.run, orchestrator.preflight", ["torch", "ray", "matplotlib", "scipy.stats", "hyperopt"]),
        ("branches.audio, branches.data.importing", ["torch", "scipy.stats"]),
        ("orchestrator.training.process", ["torch", "mlflow", "sklearn", "scipy"]),
    ],
)
def test_heavy_packages_are_not_loaded(module, absent):
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "[]"
