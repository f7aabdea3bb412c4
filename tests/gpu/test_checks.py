"""The checks without a GPU: they hold on a CPU, and need no more than they say."""

import subprocess
import sys

import pytest

# What an image with torch, torchaudio, numpy, scipy, scikit-learn, pyarrow, soundfile and pydantic lacks.
ABSENT = ("ray", "mlflow", "orchestrator", "cluster", "fusion", "hyperopt", "psutil", "click", "yaml")
PROGRAM = f"""
import runpy, sys
class Absent:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
sys.argv = ["checks", "--device", "cpu", "--steps", "4"]
runpy.run_module("tests.gpu.checks", run_name="__main__")
"""


@pytest.mark.slow
def test_the_checks_hold_on_a_cpu_in_a_bare_image():
    checked = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", PROGRAM], capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stderr
    assert checked.stdout.count("resumed: relative error 0.0e+00") == 5
