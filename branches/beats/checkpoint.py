"""Reads and writes BEATs checkpoints: `{"cfg": dict, "model": state_dict}`, as the BEATs authors release them.

Those of OpenBEATs (arXiv:2507.14129) hold the same network among parts of its pre-training, and may state another
normalisation of the log-mels. A safetensors file has its `cfg` in `config.json` beside it.
"""

import copy
import errno
import json
import os
import re
from argparse import Namespace
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from branches.beats.backbone import BEATs
from branches.beats.config import TINY, BEATsConfig
from branches.beats.lora import merge_lora
from branches.checkpoint_files import is_safetensors, local_file
from scoring.atomic import atomic
from scoring.errors import InputError

_TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
_TINY_SEED = 20_221_218
_PATCHES = "patch_embedding.weight"
# OpenBEATs': convolutions that find padding, by which its checkpoints are known, and what predicts masked tokens.
_PADDING = ("patch_embedding_pad.", "raw2fbank_pad.")
_PRETRAINING = ("decoder", "predictor.", "mask_token")
# What training scripts call the two parts of a checkpoint.
_PARTS = {"config": "cfg", "state_dict": "model"}
_ALONE = (
    "it holds tensors alone, as a .pth of ESPnet does, and not their architecture; take the checkpoint of a base "
    "repository, shikhar7ssu/OpenBEATs-{Base,Large}-i{1,2,3}, which the name OpenBEATs-Base-i3 and the like fetch, or "
    'save {"cfg": architecture, "model": these tensors}'
)
# Weight norm as torch.nn.utils.parametrizations has it: original0 is the magnitude, original1 the direction.
_WEIGHT_NORM = re.compile(r"(.*)parametrizations\.weight\.original([01])")
_NUMPY = ("bool", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64")
_SCALAR: Any = np.float64(0).__reduce__()[0]
# What training scripts leave beside tensors; none of it runs code.
_PLAIN: list[Any] = [
    *(Namespace, np.dtype, *(type(np.dtype(name)) for name in _NUMPY)),
    *(_SCALAR, (_SCALAR, "numpy.core.multiarray.scalar")),  # of NumPy 2 and 1
]


def load_beats(path: str | os.PathLike[str], sha256: str | None = None) -> BEATs:
    """A BEATs backbone in eval mode, on the CPU.

    path: a checkpoint (local path, `file://`, `s3://`, `http(s)://` …), or "small", the network that comes with tutti,
        or "tiny", a small random network whose weights are always the same
    sha256: digest of the file, or its first 8 hex digits or more. A remote file is kept in the cache folder
        (`$TUTTI_CACHE`, else `tutti` in the user's cache folder) under its digest; with `sha256` it is fetched
        once, without it each time, because only the file's content says whether it is still the same.

    Raises InputError if the file is not there, is not the one `sha256` means, or is no BEATs checkpoint, naming the key
    that is missing, unexpected or of the wrong shape.
    """
    if str(path) == "tiny":
        return random_beats(TINY, _TINY_SEED)
    cfg, state = read_checkpoint(path, sha256)
    with naming(path):
        return build_beats(cfg, state)


def save_beats(model: BEATs, path: str | os.PathLike[str]) -> None:
    """Write `model` as a checkpoint in the released form; adapters become part of the weights."""
    plain = copy.deepcopy(model)
    merge_lora(plain)
    state = {key: value.detach().cpu() for key, value in plain.state_dict().items()}
    first, *others = _tables(model.config)
    save_tensors({"cfg": model.config.model_dump(), "model": {**state, **dict.fromkeys(others, state[first])}}, path)


def save_tensors(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write what `read_tensors` reads; the file appears whole or not at all, and says nothing of its name."""
    with atomic(Path(path)) as temporary, temporary.open("xb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # such as of a full disk, of which torch knows a position
                raise error.__context__ from None
            raise


def random_beats(config: BEATsConfig, seed: int) -> BEATs:
    """A BEATs network with random weights, in eval mode; equal seeds give equal weights.

    The global random state is neither used nor changed.
    """
    with torch.device("meta"):
        model = BEATs(config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _initialise(name, parameter, generator)
    return model.eval()


def _initialise(name: str, parameter: Tensor, generator: torch.Generator) -> None:
    """Biases 0, norms and gates 1, everything else normal with the variance 1 / fan-in."""
    if name.endswith("bias"):
        parameter.zero_()
    elif parameter.dim() == 1 or name.endswith("grep_a"):
        parameter.fill_(1.0)
    elif name.endswith("weight_g"):
        # Positions begin small beside the features they are added to.
        parameter.fill_(parameter.numel() ** -0.5)
    elif name.endswith("relative_attention_bias.weight"):
        parameter.normal_(0.0, 0.1, generator=generator)
    else:
        parameter.normal_(0.0, parameter[0].numel() ** -0.5, generator=generator)
        if name == "patch_embedding.weight":
            # A patch's level is far larger than its shape, and the layer norm that follows would leave the shape
            # little room. Trained filters hardly answer to the level; neither shall random ones.
            parameter.sub_(0.9 * parameter.mean(dim=(1, 2, 3), keepdim=True))


def build_beats(cfg: Mapping[str, Any], state: Mapping[str, Tensor]) -> BEATs:
    """A BEATs network in eval mode from the two parts of a checkpoint.

    Raises InputError, naming the first key that is missing, unexpected or of the wrong shape.
    """
    model = _on_meta(cfg)
    first, *others = _tables(model.config)
    for key in others:
        if key in state and first in state and not torch.equal(state[first], state[key]):
            raise InputError(f"{key} differs from {first}; BEATs has one table for all layers")
    beside = (*_PADDING, *_PRETRAINING) if any(key.startswith(_PADDING) for key in state) else ()
    passed_over = {key for key in state if key.startswith(beside)} - model.state_dict().keys()
    load_state(model, {key: value for key, value in state.items() if key not in passed_over.union(others)})
    return model.eval()


def count_parameters(path: str | os.PathLike[str]) -> int:
    """Parameters of a checkpoint's network, which is neither loaded nor are its weights read; errors as `load_beats`.

    What OpenBEATs has beside the network does not count.
    """
    cfg, _ = read_checkpoint(path, mapped=True)
    with naming(path):
        return sum(parameter.numel() for parameter in _on_meta(cfg).parameters())


def _on_meta(cfg: Mapping[str, Any]) -> BEATs:
    """A network without weights: no time is spent on random ones, and no random numbers."""
    config = BEATsConfig.from_cfg(cfg)
    with torch.device("meta"):
        return BEATs(config)


def _tables(config: BEATsConfig) -> list[str]:
    """Keys of the table of relative positions, which released files have under every layer, and the model once."""
    return [_TABLE.format(layer) for layer in range(config.encoder_layers)]


def load_state(module: nn.Module, state: Mapping[str, Tensor], fixed: Container[str] = ()) -> None:
    """Put `state` into `module` (which may be on the meta device) as float32; keys and shapes must be the same.

    fixed: names of what stays as it is, and is not in `state`
    """
    expected = {key: value for key, value in module.state_dict().items() if key not in fixed}
    _fail_on("missing", [key for key in expected if key not in state])
    _fail_on("unexpected", [key for key in state if key not in expected])
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise InputError(f"{key} has shape {tuple(state[key].shape)}, must be {tuple(value.shape)}")
    # Copies: a tensor may share its memory with others in the file.
    module.load_state_dict({key: state[key].float().clone() for key in expected}, strict=False, assign=True)


def _fail_on(what: str, keys: list[str]) -> None:
    if keys:
        more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
        raise InputError(f"{what} key {keys[0]}{more}")


def read_checkpoint(
    path: str | os.PathLike[str], sha256: str | None = None, mapped: bool = False
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The two parts of a checkpoint, `cfg` and state dict, as the released files have them.

    mapped: leave tensors in the file until they are used

    Raises InputError if the file is not there, not the one `sha256` means, or no checkpoint.
    """
    file = local_file(str(path), sha256)
    try:
        content = _read_safetensors(file) if is_safetensors(file) else read_tensors(file, mapped)
        if isinstance(content, dict):
            content = {_PARTS.get(key, key): value for key, value in content.items()} | content
        match content:
            case {"cfg": dict() | Namespace() as cfg, "model": dict() as state}:
                if all(isinstance(key, str) and torch.is_tensor(value) for key, value in state.items()):
                    return _plain_values(cfg), _plain_keys(state)
            case {"spec": str()}:
                raise InputError('it is a trained branch; save_beats(load_branch(FILE).beats, "my.pt") makes one of it')
            case {} if all(map(torch.is_tensor, content.values())):
                raise InputError(_ALONE)
        raise InputError('it must hold "cfg" and "model" (a state dict)')
    except InputError as error:
        raise InputError(f"{path} is not a BEATs checkpoint: {error}") from error


def read_tensors(file: Path, mapped: bool = False) -> Any:
    """What torch saved in a file; only tensors and plain values are ever unpickled, else it raises InputError.

    mapped: leave tensors in the file until they are used, unless it is of torch before 1.6
    """
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(file, "cpu", weights_only=True, mmap=mapped and is_zipfile(file))
    except MemoryError:
        raise
    except Exception as error:  # the unpickler fails in any way on a file that is no pickle
        if isinstance(error, OSError) and error.errno != errno.EINVAL:  # in a cut file it seeks before the beginning
            raise InputError(f"cannot be read ({error.strerror})") from None
        if other := re.search(r"GLOBAL (\S+) was not an allowed global", str(error)):
            raise InputError(f"it holds {other[1]}; save tensors, numbers and text alone in it") from None
        raise InputError("not a file of tensors saved by torch") from error


def _read_safetensors(file: Path) -> dict[str, Any]:
    """The same content as of a released file, from a safetensors file and `config.json` beside it."""
    config = file.with_name("config.json")
    try:
        cfg = json.loads(config.read_bytes())
        state = load_file(file)
    except FileNotFoundError:
        raise InputError(f"it holds tensors alone, and {config}, which describes the network, is not there") from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})") from None
    except ValueError:
        raise InputError(f"{config} is not JSON") from None
    except SafetensorError as error:
        raise InputError(f"not a file of safetensors ({error})") from None
    inner = (cfg.get(key) for key in ("cfg", "config", "beats_config")) if isinstance(cfg, dict) else ()
    return {"cfg": next((value for value in inner if isinstance(value, dict)), cfg), "model": state}


def _plain_values(cfg: dict[str, Any] | Namespace) -> dict[str, Any]:
    """A `cfg` as a dict without NumPy's numbers."""
    values = vars(cfg) if isinstance(cfg, Namespace) else cfg
    return {key: value.item() if isinstance(value, np.generic) else value for key, value in values.items()}


def _plain_keys(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict under the released names: without what stands before all of them, weight norm as it was saved then.

    In an ESPnet model the network stands under `encoder.`, and what stands elsewhere is not of it.
    """
    prefix = min((key.removesuffix(_PATCHES) for key in state if key.endswith(_PATCHES)), key=len, default="")
    inside = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    if len(inside) < len(state) and "encoder." not in prefix:
        inside = dict(state)
    return {
        f"{match[1]}weight_{'gv'[int(match[2])]}" if (match := _WEIGHT_NORM.fullmatch(key)) else key: value
        for key, value in inside.items()
    }


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
