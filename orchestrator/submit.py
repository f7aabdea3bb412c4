"""What goes along with a job: this program's code and the system files, and the command to run there."""

from __future__ import annotations

import re
import shlex
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from branches.checkpoint_files import is_remote
from branches.spec import BUILT_IN
from scoring.errors import InputError

_ROOT = Path(__file__).resolve().parent.parent
_PACKAGES = ("orchestrator", "branches", "scoring", "fusion", "cluster")
_PASSWORD = re.compile(r"://[^/@]*:[^/@]+@")
_NAMES = {"as_json": "json", "compiled": "compile", "overrides": "set"}  # of options that Python calls otherwise


@contextmanager
def shipped(systems: Sequence[str]) -> Iterator[tuple[Path, list[str]]]:
    """A folder with code and system files, and what the systems are called in it; removed after the block.

    It is far below the 100 MiB that Ray takes: data and checkpoints are read from the cluster's own storage.
    """
    with tempfile.TemporaryDirectory(prefix="tutti-job-") as name:
        folder = Path(name)
        for package in _PACKAGES:
            shutil.copytree(_ROOT / package, folder / package, ignore=shutil.ignore_patterns("__pycache__"))
        # The package need not be installed there, but its version stands in every table.
        metadata = folder / "tutti_asd.egg-info" / "PKG-INFO"
        metadata.parent.mkdir()
        metadata.write_text(
            f"Metadata-Version: 2.1\nName: tutti-asd\nVersion: {version('tutti-asd')}\n", encoding="utf-8"
        )
        names = list(systems)
        for number, system in enumerate(systems):
            if Path(system).suffix in (".yaml", ".yml"):
                names[number] = f"system{number}.yaml"
                shutil.copyfile(system, folder / names[number])
        yield folder, names


def run_command(systems: Sequence[str], options: Mapping[str, Any]) -> str:
    """The shell command of `tutti run` with these options on the cluster that runs it.

    `InputError` if a path is relative, which there would lie in the job's own folder and vanish with it, or a URI has a
    password in it, which the dashboard would show.
    """
    paths = {key: options[key] for key in ("data", "out")}
    backbone = options["backbone"]
    if backbone and backbone not in BUILT_IN and not is_remote(backbone):
        paths["backbone"] = Path(backbone)
    for key, path in paths.items():
        if not path.is_absolute():
            raise InputError(f"--{key} {path}: give the absolute path that all nodes of the cluster see")
    words = ["python", "-m", "orchestrator", "run", *systems, "--address", "auto"]
    for key, values in options.items():
        option = f"--{_NAMES.get(key, key).replace('_', '-')}"
        for value in values if isinstance(values, tuple) else (values,):
            if _PASSWORD.search(str(value)):
                raise InputError(
                    f"{option} has a password in it, which the dashboard would show; give it to the cluster"
                )
            if value is True:
                words.append(option)
            elif value is not None and value is not False:
                words += [option, str(value)]
    return shlex.join(words)
