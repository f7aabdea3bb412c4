"""The challenge's submission: its files, the package of a run, and the check of any package."""

from orchestrator.submission.files import write_submission

__all__ = ["write_submission"]
