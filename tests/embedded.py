"""Embeddings of all clips as arrays, for tests that need no files."""

import tempfile
from pathlib import Path

import numpy as np

from branches.model import embed
from branches.spec import PROJECTION


def embedded(model, audio, channel="near", embeddings=(PROJECTION,), batch_size=32):
    """Each of the embeddings of all clips, from one pass."""
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{i}.npy" for i in range(len(embeddings))]
        embed(model, audio, channel, embeddings, files, batch_size)
        return [np.load(file) for file in files]
