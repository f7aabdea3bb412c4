"""The HTML report of a run: results are collected, drawn, and set into one self-contained page."""

from orchestrator.report.page import REPORT, write_report

__all__ = ["REPORT", "write_report"]
