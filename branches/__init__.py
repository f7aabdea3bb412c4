"""Clips → fine-tuned BEATs → embeddings. Knows nothing of Ray, MLflow or fusion."""
