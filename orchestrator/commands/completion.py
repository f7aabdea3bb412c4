"""The command that prints a shell's completion script."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print a script that completes commands, options and systems; put it where your shell reads such scripts.

    \b
    Example: tutti completion bash > ~/.local/share/bash-completion/completions/tutti
             tutti completion fish > ~/.config/fish/completions/tutti.fish
    """
    shell_class = get_completion_class(shell)
    assert shell_class is not None
    root = context.find_root()
    click.echo(shell_class(root.command, {}, "tutti", "_TUTTI_COMPLETE").source())
