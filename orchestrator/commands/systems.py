"""Commands on system files: systems, show."""

from __future__ import annotations

import json

import click
import yaml

from orchestrator.commands.options import backbone_option, complete_systems, json_option, set_option
from scoring.errors import counted


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
