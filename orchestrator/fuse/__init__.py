"""Fusion of a run's systems, or of tables made elsewhere."""
