"""What does not load is one line before anything is decoded, started or tried in every branch."""

import os
import subprocess
import sys

import pytest

from branches.data.synthetic import SyntheticSize, write_dataset
from orchestrator.installation import check_installation
from tests.commands import SMALL_SYSTEM

UNDEFINED = "raise OSError('libtorchaudio.so: undefined symbol: torch_dtype')"


def test_this_installation_loads():
    check_installation()


@pytest.mark.slow
def test_a_run_with_torchaudio_of_another_torch_ends_at_once(tmp_path):
    write_dataset(tmp_path / "data", SyntheticSize(4, 1, 1, 1.0), machines=["rotor"])
    (tmp_path / "small.yaml").write_text(SMALL_SYSTEM)
    broken = tmp_path / "broken" / "torchaudio" / "__init__.py"
    broken.parent.mkdir(parents=True)
    broken.write_text(UNDEFINED)
    command = [sys.executable, "-m", "orchestrator", "run", "small.yaml", "--data", "data", "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(broken.parents[1]), os.getcwd()])}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: torchaudio does not load (torch ")
    assert "undefined symbol: torch_dtype; pip install --upgrade --force-reinstall 'torch>=" in last
    assert "Traceback" not in done.stderr
    assert "starting Ray" not in done.stderr
    assert not list(tmp_path.glob("out/cache/*"))
