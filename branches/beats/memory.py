"""What a clip's attention needs, against what there is: a clip of minutes ends in an error, not in a killed process."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

import torch

from branches.frames import FRAME_SHIFT, N_MELS, PATCH_SIZE, SAMPLE_RATE
from scoring.errors import InputError

LONG_CLIP = 6_000
"""Frames, a minute: shorter clips are not asked about."""
CPU = torch.device("cpu")
_CGROUP = Path("/sys/fs/cgroup")


class TooLong(InputError):
    """A clip whose attention does not fit into memory."""


def check_attention_memory(heads: int, frames: int, device: torch.device = CPU) -> None:
    """Raise `TooLong` if the attention of one clip of so many frames does not fit into a device's free memory."""
    patches = frames // PATCH_SIZE * (N_MELS // PATCH_SIZE)
    needed = 2 * heads * patches**2 * 4  # the position bias, and a clip's gated one
    available = available_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    if needed > available:
        raise TooLong(
            f"{frames * FRAME_SHIFT / SAMPLE_RATE:.0f} s are too long to be judged as one clip: attention needs "
            f"{needed / 1e9:.3g} GB, and {available / 1e9:.3g} GB are free; cut it into clips, or score it with "
            "`tutti score --window 10`"
        )


def available_memory() -> int:
    """Bytes that this process can still take: of the machine, of its container, and by its own limit."""
    import psutil  # not needed where no clip is long

    limits = [psutil.virtual_memory().available]
    with suppress(OSError, ValueError):  # without cgroups, or "max"
        limit, used = (int((_CGROUP / f"memory.{name}").read_text("utf-8")) for name in ("max", "current"))
        stat = dict(line.split() for line in (_CGROUP / "memory.stat").read_text("utf-8").splitlines())
        limits.append(limit - used + int(stat["inactive_file"]))  # the file cache gives way
    of_process, _ = resource.getrlimit(resource.RLIMIT_AS)
    if of_process != resource.RLIM_INFINITY:
        limits.append(of_process - psutil.Process().memory_info().vms)
    return max(0, min(limits))
