"""What all commands have in common: help, logs, completion, and how they tell an error."""

import errno
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import click
import pytest

from orchestrator.cli import main
from orchestrator.commands.options import complete_systems
from scoring.errors import InputError
from tests.commands import TUTTI, tutti, tutti_here


def commands(group, *names):
    """Every command below a group: the words that call it, and itself."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield [*names, name], command


def test_help_has_an_example_for_every_command_and_a_text_for_every_option():
    found = list(commands(main))
    assert len(found) == 19
    for words, command in found:
        page = tutti_here(*words, "--help")
        assert page.exit_code == 0
        assert f"Example: tutti {' '.join(words)}" in page.stdout
        assert tutti_here(*words, "-h").stdout == page.stdout
        assert [p.opts for p in command.params if isinstance(p, click.Option) and not p.help] == []
    assert version("tutti-asd") in tutti_here("--version").stdout


def test_less_and_more_of_a_log(tmp_path):
    fuse = ["fuse", "--tables", tmp_path, "--out", tmp_path / "out"]
    plain, quiet, verbose = (tutti(*flag, *fuse).stderr for flag in ([], ["-q"], ["-v"]))
    assert plain.startswith(f"reading score tables from {tmp_path}\nError: {tmp_path}")
    assert quiet == plain.partition("\n")[2]
    assert f" orchestrator.commands.scores: reading score tables from {tmp_path}\n" in verbose
    assert "contradict each other" in tutti_here("-q", "-v", "systems").stderr


def test_a_terminal_that_lacks_a_character_is_shown_its_number():
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    assert rb"\u03b3" in subprocess.check_output([TUTTI, "show", "--settings"], env=environment)


def test_the_shell_completes_commands_and_systems():
    source = {**os.environ, "_TUTTI_COMPLETE": "bash_source", "PATH": f"{Path(TUTTI).parent}:{os.environ['PATH']}"}
    script = subprocess.check_output([TUTTI], env=source, text=True)
    for words, completions in (("tutti su", ["submission", "submit"]), ("tutti run so", ["solo"])):
        call = f"{script}\nCOMP_WORDS=({words}); COMP_CWORD={words.count(' ')}; _tutti_completion tutti"
        command = ["bash", "-c", call + '; printf "%s\n" "${COMPREPLY[@]}"']
        assert sorted(subprocess.check_output(command, env=source, text=True).split()) == completions
    assert [item.value for item in complete_systems(None, None, "s")] == ["s1", "s2", "s3", "s4", "s5", "solo"]
    assert [item.type for item in complete_systems(None, None, "my/")] == ["file"]


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (InputError("a.csv: is empty"), 2, "Error: a.csv: is empty\n"),
        (OSError(errno.ENOSPC, "No space left", "/full"), 2, "Error: /full: No space left; make room, or give another"),
        (ImportError("no libarrow"), 2, "Error: no libarrow; `tutti doctor` says which package to install\n"),
        (KeyboardInterrupt(), 130, "Error: interrupted; what is finished is kept, run again to continue\n"),
        (OSError(errno.EIO, "Input/output error"), 1, None),
        (ZeroDivisionError(), 1, None),
    ],
)
def test_a_fault_of_the_user_or_the_place_is_one_line_and_one_of_the_program_a_traceback(
    monkeypatch, raised, code, told
):
    def fails():
        raise raised

    monkeypatch.setattr("orchestrator.system.built_in_systems", fails)
    run = tutti_here("systems")
    assert run.exit_code == code
    assert run.stderr.startswith(told) if told else run.exception is raised


RUN, SUBMIT = "run demo --data {data} --out {out}", "submit demo --out {out} --address"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run s99 --data {data} --out {out}", "unknown system 's99'"),
        ("run demo --data {out} --out {out}", "not a data set"),
        (f"{RUN} --tracking-uri http://a:b@127.0.0.1:1", "set MLFLOW_TRACKING_USERNAME"),
        (f"{RUN} --address http://127.0.0.1:1", "use `tutti submit`"),
        (f"{SUBMIT} 127.0.0.1:1 --data {{data}}", "give the dashboard's"),
        (f"{SUBMIT} http://127.0.0.1:1 --data {{data}}", "no Ray dashboard"),
        (f"{SUBMIT} http://127.0.0.1:1 --data data", "the absolute path"),
        ("demo --out {file}", "Not a directory"),
        ("ui --out {data}", "no such store"),
        ("report {data}", "no results to report"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(arguments, message, dataset, tmp_path):
    (tmp_path / "file").touch()
    run = tutti_here(*arguments.format(data=dataset, out=tmp_path, file=tmp_path / "file").split())
    assert (run.exit_code, run.stdout, type(run.exception)) == (2, "", SystemExit)
    assert message in run.stderr.strip().splitlines()[-1]
