"""Commands on what runs are made of: systems, show, backbones."""

from __future__ import annotations

import json

import click
import yaml

from orchestrator.commands.options import backbone_option, complete_systems, json_option, print_table, set_option
from scoring.errors import InputError, counted


@click.command()
@json_option
def systems(as_json: bool) -> None:
    """List the built-in systems, to choose one for `tutti run`.

    \b
    Example: tutti systems
    """
    from orchestrator.system import built_in_systems, load_system

    built_in = [load_system(name) for name in built_in_systems()]
    if as_json:
        click.echo(json.dumps({"systems": [{"name": s.name, "description": s.description} for s in built_in]}))
        return
    for system in built_in:
        tables = sum(len(c.seeds) for configurations in system.subsystems.values() for c in configurations.values())
        click.echo(f"{system.name} ({counted(tables, 'score table')}): {system.description}")


def _print_settings(context: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted:
        from orchestrator.settings_table import settings_page

        click.echo(settings_page(), nl=False)
        context.exit()


@click.command()
@click.argument("system", shell_complete=complete_systems)
@click.option(
    "--settings", is_flag=True, is_eager=True, expose_value=False, callback=_print_settings,
    help="Print every setting with its default and what it means, and exit.",
)  # fmt: skip
@backbone_option
@set_option
@json_option
def show(system: str, backbone: str | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print a system as it will be used, defaults included.

    To find the key of a setting for --set, or to begin a system file of your own. `tutti show --settings`
    says what the settings mean.

    \b
    Example: tutti show s2 --backbone tiny --set branch.training.steps=30
    """
    from orchestrator.system import load_system

    settings = load_system(system, backbone, overrides).model_dump(mode="json")
    click.echo(json.dumps(settings) if as_json else yaml.safe_dump(settings, sort_keys=False, width=120), nl=as_json)


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@json_option
def backbones(names: tuple[str, ...], as_json: bool) -> None:
    """List the checkpoints that --backbone takes by name; fetch those that are named here.

    A run fetches what it needs. Where nodes of a cluster have no network, fetch it here before.

    \b
    Example: tutti backbones
             tutti backbones BEATs_iter3
    """
    from branches.backbones import BACKBONES, cache_folder, cached, fetched

    if unknown := [name for name in names if name not in BACKBONES]:
        raise InputError(f"{', '.join(unknown)}: no checkpoint of this name; `tutti backbones` lists them")
    for name in names:
        fetched(BACKBONES[name])
    listed = [{**vars(b), "cached": cached(b.name).exists()} for b in BACKBONES.values()]
    if as_json:
        click.echo(json.dumps({"backbones": listed, "cache": str(cache_folder())}))
        return
    print_table(
        ("name", "MB", "licence", "sha256", "in the cache"),
        [
            (b["name"], f"{b['size'] / 1e6:.0f}", b["licence"], (b["sha256"] or "")[:8] or None, "yes" * b["cached"])
            for b in listed
        ],
    )
    click.echo(f"\ncache: {cache_folder()} (TUTTI_CACHE moves it)")
