"""The house's rules: who may import whom, and what must not be loaded."""

import ast
import subprocess
import sys
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


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_import_runs_backwards(package):
    for path in (ROOT / package).rglob("*.py"):
        assert not set(imports(path)) & FORBIDDEN[package], path


def test_one_file_of_fusion_knows_ray():
    assert [p.name for p in (ROOT / "fusion").glob("*.py") if "ray" in set(imports(p))] == ["job.py"]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("scoring.banks, scoring.metrics, fusion.search", ["torch", "ray", "mlflow"]),
        ("orchestrator.cli, orchestrator.doctor", ["torch", "ray", "mlflow", "numpy"]),
        ("orchestrator.submission.check", ["torch", "ray", "mlflow"]),
        ("orchestrator.trial", ["torch", "mlflow", "sklearn", "scipy"]),
    ],
)
def test_heavy_packages_are_not_loaded(module, absent):
    code = f"import sys, {module}; print([m for m in {absent} if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert run.stdout.strip() == "[]"
