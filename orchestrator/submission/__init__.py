"""The challenge's submission: its files, the package of a run, and the check of any package."""
