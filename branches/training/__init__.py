"""Fine-tuning: what is trained on what, and how."""
