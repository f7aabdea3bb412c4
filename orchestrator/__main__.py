"""`python -m orchestrator` is `tutti`, also where the package's code lies without being installed."""

import sys
from pathlib import Path

# Before the working directory, which `-m` puts first: a script there called `scoring.py` is not the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from orchestrator.cli import main

main(prog_name="tutti")
