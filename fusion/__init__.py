"""Score tables → weights, and how far they can be trusted."""
