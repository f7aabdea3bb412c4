"""The HTML report of a run: results are collected, drawn, and set into one self-contained page."""

from orchestrator.report.refresh import REPORT, refresh_report

__all__ = ["REPORT", "refresh_report"]
