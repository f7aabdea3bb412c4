"""The HTML report of a run: results are collected, drawn, and set into one self-contained page."""
