"""Sampling rate, frames and patches in numbers, apart from `branches.frontend` so that reading them loads no torch."""

SAMPLE_RATE = 16_000
"""Hz; the only rate BEATs knows."""
FRAME_LENGTH = 400
"""Samples per frame (25 ms)."""
FRAME_SHIFT = 160
"""Samples between frame starts (10 ms)."""
N_MELS = 128
"""Mel bins per frame."""
PATCH_SIZE = 16
"""Frames and mel bins per patch."""
MIN_SAMPLES = FRAME_LENGTH + (PATCH_SIZE - 1) * FRAME_SHIFT
"""Shortest clip that gives one 16 × 16 patch: 2 800 samples (175 ms)."""


def n_frames(n_samples: int) -> int:
    """Number of feature frames of a clip of `n_samples` samples (frames that would run over the end are dropped)."""
    return max(0, (n_samples - FRAME_LENGTH) // FRAME_SHIFT + 1)
