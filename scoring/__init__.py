"""Embeddings → calibrated scores → metrics. Owns the score table; never imports torch."""
