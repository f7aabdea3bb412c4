"""The command line. Heavy packages are imported inside the commands, so that `--help` answers at once."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
import traceback
from typing import Any

import click

from orchestrator.commands.data import data
from orchestrator.commands.deliverables import report, submission, ui
from orchestrator.commands.model import enrol, export, score
from orchestrator.commands.runs import demo, doctor, plan, run, submit
from orchestrator.commands.scores import fuse, metrics, tables
from orchestrator.commands.systems import backbones, show, systems
from scoring.errors import PLACE_ERRNOS, InputError, place_error


class _Commands(click.Group):
    """Turns a user's error into one line and exit code 2."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            message = str(error)
        except OSError as error:
            if _is_of_output(error):
                message = f"standard output: {error.strerror}"
            elif error.filename is None and error.errno not in PLACE_ERRNOS:
                raise
            else:
                message = place_error(error)
        except ImportError as error:
            message = f"{error}; `tutti doctor` says which package to install"
        except KeyboardInterrupt:
            click.echo("Error: interrupted; what is finished is kept, run again to continue", err=True)
            return ctx.exit(130)
        click.echo(f"Error: {message}", err=True)
        return ctx.exit(2)


def _is_of_output(error: OSError) -> bool:
    """Whether standard output takes no more, which has no name in an error; what is left for it is dropped then."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    if frame.f_code is not click.echo.__code__ or error.errno == errno.EPIPE:  # where click ends quietly
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    return True


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="tutti-asd")
@click.option("-v", "--verbose", is_flag=True, help="Log details, including other packages'.")
@click.option("-q", "--quiet", is_flag=True, help="Log only warnings and errors; results are still printed.")
def main(verbose: bool, quiet: bool) -> None:
    """Train BEATs branches, score them, and fuse them into systems that hold on new machines.

    \b
    tutti demo                                  the whole chain on generated data
    tutti plan s2 --data DIR                    what would be trained
    tutti run s1 s2 --data DIR --out runs/a     train what is missing, fuse, deliver
    tutti fuse --tables DIR --out fused         fuse score tables of any origin
    tutti -q COMMAND, tutti -v COMMAND          less or more logging
    _TUTTI_COMPLETE=bash_source tutti           the shell's completion script (also zsh_source, fish_source)
    """
    if verbose and quiet:
        raise click.UsageError("--verbose and --quiet contradict each other")
    # A name that the terminal's encoding lacks is shown with escapes, and ends nothing.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    detailed = "%(asctime)s %(name)s: %(message)s"
    logging.basicConfig(format=detailed if verbose else "%(message)s", stream=sys.stderr)
    logging.getLogger().setLevel(logging.INFO if verbose else logging.WARNING)
    for package in ("orchestrator", "branches", "scoring", "fusion", "cluster"):
        logging.getLogger(package).setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)


for command in (
    *(demo, data, systems, show, backbones, doctor, plan, run, submit),
    *(metrics, fuse, tables),
    *(report, submission, ui),
    *(export, score, enrol),
):
    main.add_command(command)
