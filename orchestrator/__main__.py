"""`python -m orchestrator` is `tutti`, also where the package's code lies without being installed."""

from orchestrator.cli import main

main(prog_name="tutti")
