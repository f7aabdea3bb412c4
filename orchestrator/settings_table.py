"""The page of all settings, made from their classes: `tutti show --settings > docs/settings.md`."""

from __future__ import annotations

from collections.abc import Iterator
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from branches.spec import FileSpec
from orchestrator.system import ConfigurationSpec
from scoring.settings import Settings

INTRODUCTION = """\
# Settings

What a configuration of a [system file](systems.md) may say, with the default of each setting. `--set KEY=VALUE` takes
the same keys. Below a choice (`branch.objective: arcface`) are its own settings; its name alone takes their defaults.

| setting | default | meaning |
|---|---|---|
"""


def settings_page() -> str:
    """Key, default and meaning of every setting of a configuration, as Markdown."""
    return INTRODUCTION + "".join(f"| `{key}` | {default} | {meaning} |\n" for key, default, meaning in _rows())


def _rows(
    settings: type[Settings] = ConfigurationSpec, prefix: str = "", told: set[type] | None = None
) -> Iterator[tuple[str, str, str]]:
    """told: the choices that have been listed, each once"""
    told = set() if told is None else told
    for name, field in settings.model_fields.items():
        if _is_name(field.annotation):
            continue
        key, classes = prefix + name, _classes(field.annotation)
        names = [_name(choice) for choice in classes] if len(classes) > 1 else _literals(field.annotation)
        if field.description or len(classes) != 1:
            meaning = ": ".join(filter(None, [field.description, ", ".join(f"`{name}`" for name in names)]))
            yield key, _shown(field.default), meaning
        for choice in [c for c in classes if c not in told]:
            told.add(choice)
            if len(classes) > 1:
                yield f"{key}: {_name(choice)}", "", (choice.__doc__ or "").split("\n")[0]
            yield from _rows(choice, f"{key}.", told)


def _is_name(annotation: Any) -> bool:
    """Whether that is what a choice is called by."""
    return get_origin(annotation) is Literal and len(get_args(annotation)) == 1


def _classes(annotation: Any) -> list[type[Settings]]:
    """Settings that may stand there."""
    if get_origin(annotation) in (Union, UnionType, Annotated):
        return [c for inner in get_args(annotation) for c in _classes(inner)]
    return [annotation] if isinstance(annotation, type) and issubclass(annotation, Settings) else []


def _literals(annotation: Any) -> list[str]:
    """Values that may stand there, where they are listed."""
    if get_origin(annotation) is Literal:
        return list(get_args(annotation))
    return [value for inner in get_args(annotation) for value in _literals(inner)]


def _name(choice: type[Settings]) -> str:
    return str(next(field.default for field in choice.model_fields.values() if _is_name(field.annotation)))


def _shown(default: Any) -> str:
    if default is None or default is PydanticUndefined:
        return ""
    if isinstance(default, tuple):
        return f"[{', '.join(map(_shown, default))}]"
    if isinstance(default, Settings):
        return default.path if isinstance(default, FileSpec) else _name(type(default))
    return str(default).lower() if isinstance(default, bool) else str(default)
