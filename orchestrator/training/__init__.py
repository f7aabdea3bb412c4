"""Training of the branches that are missing, on Ray Tune."""
