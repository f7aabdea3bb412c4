"""Specs, plan, launch (Ray Tune), tracking (MLflow), deliverables and the command line."""
