"""Reads and writes BEATs checkpoints: `{"cfg": dict, "model": state_dict}`, as the BEATs authors release them.

Our own fine-tuned checkpoints may leave out what is as in another checkpoint, their `base`:
`{"cfg": dict, "model": the tensors that changed, "base": {"path": str, "sha256": str or None}}`, and may carry a
`branch` (`branches.model.save_branch`). `cfg["lora"]` describes adapters, whose tensors stand in `model`.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from branches.beats.backbone import BEATs
from branches.beats.config import TINY, BEATsConfig
from branches.beats.lora import add_lora
from branches.beats.wrappings import plain_keys, plain_values, unwrapped
from branches.checkpoint_files import local_file
from branches.spec import BUILT_IN
from scoring.atomic import atomic
from scoring.errors import InputError

_TABLE = "encoder.layers.{}.self_attn.relative_attention_bias.weight"
_TINY_SEED = 20_221_218


def load_beats(path: str | os.PathLike[str], sha256: str | None = None) -> BEATs:
    """A BEATs backbone in eval mode, on the CPU.

    Args:
        path: a released or saved checkpoint (local path, `file://`, `s3://`, `http(s)://` …), or "tiny": a small
            random network whose weights are always the same, or "small": the network that comes with tutti.
            A fine-tuned checkpoint comes with its adapters.
        sha256: digest of the file, or its first 8 hex digits or more. A remote file is kept in the cache folder
            (`$TUTTI_CACHE`, else `tutti` in the user's cache folder) under its digest; with `sha256` it is fetched
            once, without it each time, because only the file's content says whether it is still the same.

    Raises:
        InputError: the file is not there, is not the one `sha256` means, or is not a BEATs checkpoint; the message
            names the file and the key that is missing, unexpected or of the wrong shape.
    """
    if str(path) == "tiny":
        return random_beats(TINY, _TINY_SEED)
    content = read_content(path, sha256)
    with naming(path):
        state = content["model"]
        if "base" in content:
            state = _with_copied_table({**_base_state(content["base"], Path(path).parent), **state})
        return build_beats(content["cfg"], state)


def save_beats(
    model: BEATs,
    path: str | os.PathLike[str],
    base: tuple[str, str | None] | None = None,
    branch: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` as a checkpoint that `load_beats` reads; the file appears whole or not at all.

    Args:
        model: the keys of its tensors are those of the released files.
        path: local; its folder must exist.
        base: path (if relative, then to the folder of `path`) and sha256 of the checkpoint that the model was made
            from: only what has changed since is written, and `load_beats` needs the base again.
        branch: plain values and tensors to keep beside it.
    """
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    content: dict[str, Any] = {"cfg": model.config.to_cfg()}
    if base is None:
        state = _with_copied_table(state)
    else:
        content["base"] = {"path": base[0], "sha256": base[1]}
        base_state = _base_state(content["base"], Path(path).parent)
        state = {
            key: value
            for key, value in state.items()
            if key not in base_state or not torch.equal(value, base_state[key])
        }
    content["model"] = state
    if branch is not None:
        content["branch"] = dict(branch)
    with atomic(Path(path)) as temporary, temporary.open("xb") as file:
        torch.save(content, file)


def _base_state(base: Any, folder: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's base."""
    match base:
        case {"path": str() as path, "sha256": str() | None as sha256}:
            location = path if path in BUILT_IN or "://" in path else str(folder / path)
            return load_beats(location, sha256).state_dict()
    raise InputError(f"base is {base!r}, must be a path and a sha256")


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

    Raises:
        InputError: names the first key that is missing, unexpected or of the wrong shape.
    """
    config = BEATsConfig.from_cfg(cfg)
    with torch.device("meta"):  # no time is spent on random weights, and no random numbers
        model = BEATs(replace(config, lora=None))
        if config.lora is not None:
            add_lora(model, config.lora)
    load_state(model, _one_table(state, config.encoder_layers))
    return model.eval()


def _with_copied_table(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """File the table of relative positions under every layer, as the released files do."""
    layers = {key.split(".")[2] for key in state if key.startswith("encoder.layers.")}
    return {**state, **{_TABLE.format(layer): state[_TABLE.format(0)] for layer in layers}}


def _one_table(state: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """Drop the copies of the first layer's table of relative positions that are filed under the others."""
    first = state.get(_TABLE.format(0))
    kept = dict(state)
    for key in map(_TABLE.format, range(1, layers)):
        copy = kept.pop(key, None)
        if first is None or copy is None:
            raise InputError(f"missing key {key if copy is None else _TABLE.format(0)}")
        if not torch.equal(first, copy):
            raise InputError(f"{key} differs from {_TABLE.format(0)}; BEATs has one table for all layers")
    return kept


def load_state(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Put `state` into `module` (which may be on the meta device) as float32; keys and shapes must be the same."""
    expected = module.state_dict()
    _fail_on("missing", [key for key in expected if key not in state])
    _fail_on("unexpected", [key for key in state if key not in expected])
    for key, value in expected.items():
        if state[key].shape != value.shape:
            raise InputError(f"{key} has shape {tuple(state[key].shape)}, must be {tuple(value.shape)}")
    # Copies: a tensor may share its memory with others in the file.
    module.load_state_dict({key: state[key].float().clone() for key in expected}, assign=True)


def _fail_on(what: str, keys: list[str]) -> None:
    if keys:
        more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
        raise InputError(f"{what} key {keys[0]}{more}")


def read_content(path: str | os.PathLike[str], sha256: str | None = None) -> dict[str, Any]:
    """What is in a checkpoint, `cfg` and `model` at least; only tensors and plain values are ever unpickled.

    Raises:
        InputError: the file is not there, not the one `sha256` means, or no checkpoint.
    """
    file = local_file(str(path), sha256)
    try:
        with plain_values():
            content = unwrapped(torch.load(file, map_location="cpu", weights_only=True))
    except MemoryError:
        raise
    except InputError as error:
        raise InputError(f"{path} is not a BEATs checkpoint: it {error}") from None
    except Exception as error:  # the unpickler fails in any way on a file that is no pickle
        raise InputError(f"{path} is not a BEATs checkpoint: not a file of tensors saved by torch") from error
    match content:
        case {"cfg": dict(), "model": dict() as state} if all(isinstance(t, Tensor) for t in state.values()):
            return {**content, "model": plain_keys(state)}
    raise InputError(f'{path} is not a BEATs checkpoint: it must hold "cfg" and "model" (a state dict)')


@contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Put the file's name in front of what is wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
