"""Clips: where they are, what they are, how they sound."""
