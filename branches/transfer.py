"""From the host to a GPU without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A host tensor on a device; for a GPU from pinned memory, else the host would wait for what is queued there."""
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)
