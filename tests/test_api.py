"""`docs/api.md` and the notebook: what they show runs, in its order."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from branches.data.synthetic import SyntheticSize, write_dataset
from scoring.metrics import official_metrics
from scoring.table import read_table
from tests.finished import NAME

DOCS = Path(__file__).parents[1] / "docs"


pytestmark = pytest.mark.slow


def execute(code: str, folder: Path) -> None:
    """Code in a Python of its own: MLflow puts a model's code in the place of tutti's."""
    script = folder / "script.py"
    script.write_text(code)
    env = {**os.environ, "PYTHONPATH": str(DOCS.parent)}
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == 0, done.stderr


def test_the_page(run, tmp_path):
    write_dataset(tmp_path / "data", SyntheticSize(8, 3, 3, 1.0), machines=["rotor", "pump"])
    fused = tmp_path / "runs" / "first" / "systems" / "s2" / "fused.parquet"
    fused.parent.mkdir(parents=True)
    shutil.copy(run.out / "systems" / NAME / "fused.parquet", fused)
    shutil.copytree(run.out / "branches", tmp_path / "runs" / "first" / "branches")
    shutil.copytree(run.model, tmp_path / "model")
    shutil.copy(run.clips("rotor")[0], tmp_path / "clip.wav")
    blocks = re.findall(r"^```python\n(.*?)^```", (DOCS / "api.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 5
    execute("\n".join(blocks).replace('"fan"', '"rotor"'), tmp_path)
    assert official_metrics(read_table(tmp_path / "fused.parquet")).machines.keys() == {"rotor", "pump"}


def test_the_notebook(tmp_path):
    notebook = json.loads((DOCS / "own_embeddings.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)
    execute("\n".join("".join(cell["source"]) for cell in cells), tmp_path)
    fused = official_metrics(read_table(tmp_path / "fused.parquet"))
    assert fused.omega > 55  # better than chance
    assert len(list((tmp_path / "submission").iterdir())) == 2 * len(fused.machines)
