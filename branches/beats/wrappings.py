"""What training scripts leave around a checkpoint: numpy numbers, namespaces, wrappers of modules and weights."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from scoring.errors import InputError

# Of DistributedDataParallel, and of torch.compile.
_MODULE_WRAPPERS = ("module.", "_orig_mod.")
# Weight norm as torch.nn.utils.parametrizations has it: original0 is the magnitude, original1 the direction.
_WEIGHT_NORM = re.compile(r"(.*)parametrizations\.weight\.original([01])")
_NUMPY = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")


@contextmanager
def plain_values() -> Iterator[None]:
    """`torch.load(…, weights_only=True)` in this block takes numpy's numbers and namespaces too; no code is run.

    Raises
    ------
    InputError
        Naming what else is in the file.
    """
    scalar: Any = np.float64(0).__reduce__()[0]
    allowed: list[Any] = [argparse.Namespace, np.dtype, scalar, *(type(np.dtype(name)) for name in _NUMPY)]
    try:
        with torch.serialization.safe_globals([*allowed, (scalar, "numpy.core.multiarray.scalar")]):
            yield
    except Exception as error:  # the unpickler fails in any way on a file that is no pickle
        if other := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
            raise InputError(f"holds {other[1]}; save tensors, numbers and text alone in it") from None
        raise


def unwrapped(value: Any) -> Any:
    """A checkpoint's content without numpy's numbers and namespaces: plain dicts, numbers and tensors."""
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, Mapping):
        return {key: unwrapped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(unwrapped, value))
    return value.item() if isinstance(value, np.generic) else value


def plain_keys(state: Mapping[str, Any]) -> dict[str, Any]:
    """A state dict under the released names: without a wrapper before all of them, weight norm as it was saved then."""
    for wrapper in _MODULE_WRAPPERS:
        if state and all(key.startswith(wrapper) for key in state):
            return plain_keys({key.removeprefix(wrapper): value for key, value in state.items()})
    return {
        f"{match[1]}weight_{'gv'[int(match[2])]}" if (match := _WEIGHT_NORM.fullmatch(key)) else key: value
        for key, value in state.items()
    }
