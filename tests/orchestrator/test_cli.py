"""What all commands have in common: help, logs, completion, how they tell an error; and the doctor."""

import errno
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import click
import pytest

from orchestrator.cli import main
from orchestrator.doctor import check_installation
from scoring.errors import InputError
from tests.commands import SMALL_SYSTEM, TUTTI, checksums, tutti, tutti_here


def test_help_has_an_example_for_every_command_and_a_text_for_every_option():
    found = {}
    for name, command in main.commands.items():
        below = command.commands if isinstance(command, click.Group) else {"": command}
        found.update({f"{name} {word}".strip(): inner for word, inner in below.items()})
    assert len(found) == 20
    for words, command in found.items():
        page = tutti_here(*words.split(), "--help")
        assert (page.exit_code, f"Example: tutti {words}" in page.stdout) == (0, True)
        assert tutti_here(*words.split(), "-h").stdout == page.stdout
        assert [p.opts for p in command.params if isinstance(p, click.Option) and not p.help] == []
    assert version("tutti-asd") in tutti_here("--version").stdout


def test_less_and_more_of_a_log(tmp_path):
    fuse = ["fuse", "--tables", tmp_path, "--out", tmp_path / "out"]
    plain, quiet, verbose = (tutti(*flag, *fuse).stderr for flag in ([], ["-q"], ["-v"]))
    assert plain.startswith(f"reading score tables from {tmp_path}\nError: {tmp_path}")
    assert quiet == plain.partition("\n")[2]
    assert f" orchestrator.commands.scores: reading score tables from {tmp_path}\n" in verbose
    assert "contradict each other" in tutti_here("-q", "-v", "systems").stderr


def test_the_page_of_all_settings_is_shown_also_on_a_terminal_that_lacks_a_character():
    page = (Path(__file__).parents[2] / "docs" / "settings.md").read_text(encoding="utf-8")
    assert tutti_here("show", "--settings").stdout == page, "tutti show --settings > docs/settings.md"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    assert rb"\u03b3" in subprocess.check_output([TUTTI, "show", "--settings"], env=environment)


@pytest.mark.parametrize(
    ("words", "completions"),
    [("tutti su", {"plain,submission", "plain,submit"}), ("tutti run so", {"plain,solo"}), ("tutti run /", {"file,/"})],
)
def test_the_shell_completes_commands_systems_and_files(words, completions):
    begun = {"_TUTTI_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    assert set(subprocess.check_output([TUTTI], env={**os.environ, **begun}, text=True).split()) == completions


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (InputError("a.csv: is empty"), 2, "Error: a.csv: is empty\n"),
        (OSError(errno.ENOSPC, "No space left", "/full"), 2, "Error: /full: No space left; make room, or give another"),
        (ImportError("no libarrow"), 2, "Error: no libarrow; `tutti doctor` says which package to install\n"),
        (KeyboardInterrupt(), 130, "Error: interrupted; what is finished is kept, run again to continue\n"),
        (OSError(errno.EIO, "Input/output error", "/disk"), 2, "Error: /disk: Input/output error; give another path\n"),
        (OSError(errno.EIO, "Input/output error"), 1, None),
        (ZeroDivisionError(), 1, None),
    ],
)
def test_a_fault_of_the_user_or_place_is_one_line_and_of_the_program_a_traceback(monkeypatch, raised, code, told):
    monkeypatch.setattr("orchestrator.system.built_in_systems", Mock(side_effect=raised))
    run = tutti_here("systems")
    assert run.exit_code == code
    assert run.stderr.startswith(told) if told else run.exception is raised


def test_an_output_that_takes_no_more_is_named_and_a_path_that_cannot_be(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    with open("/dev/full", "w") as full:
        run = subprocess.run([TUTTI, "systems"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (2, "Error: standard output: No space left on device\n")
    for path, told in (
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "loop" / "x", "Too many levels of sym"),
    ):
        refused = tutti_here("plan", "demo", "--data", tmp_path, "--out", path)
        assert (refused.exit_code, refused.stderr.startswith(f"Error: {path}: {told}")) == (2, True)


RUN, SUBMIT = "run demo --data {data} --out {out}", "submit demo --out {out} --address"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run s99 --data {data} --out {out}", "unknown system 's99'"),
        ("run demo --data {out} --out {out}", "not a data set"),
        (f"{RUN} --tracking-uri http://127.0.0.1:1", "no MLflow server answers at http://127.0.0.1:1"),
        (f"{RUN} --tracking-uri http://a:b@127.0.0.1:1", "set MLFLOW_TRACKING_USERNAME"),
        (f"{RUN} --address 127.0.0.1:1", "no Ray cluster answers at 127.0.0.1:1"),
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


NOWHERE = ("--address", "127.0.0.1:1")  # spares the start of a Ray, and is a problem of its own


def checks(run):
    return {check["name"]: check for check in json.loads(run.stdout)["checks"]}


@pytest.mark.slow
def test_the_doctor_finds_a_sound_place_with_a_local_session_and_the_store_of_a_moved_run(dataset, store, tmp_path):
    shutil.copy(store, tmp_path / "mlflow.db")
    before = checksums(tmp_path)
    run = tutti_here("doctor", "--data", dataset, "--out", tmp_path, "--json")
    assert run.exit_code == 0, run.stdout
    found = checks(run)
    states = {name: check["state"] for name, check in found.items() if not name.startswith("gpu")}
    assert states == dict.fromkeys(("packages", "torch", "ray", "mlflow", "data", "disk"), "ok")
    for text in (f"{os.cpu_count()} CPU", "authentication: token"):
        assert text in found["ray"]["text"]
    assert "50 clips of 2 machines" in found["data"]["text"]
    assert "mlflow.db answers" in found["mlflow"]["text"]
    assert checksums(tmp_path) == before  # nothing is made


@pytest.mark.slow
def test_the_doctor_names_places_that_cannot_be_used_or_have_no_room_for_the_clips(tmp_path):
    (tmp_path / "text.db").write_text("not a database " * 100)
    places = ["--data", tmp_path, "--out", tmp_path, "--tracking-uri", f"sqlite:///{tmp_path / 'text.db'}"]
    run = tutti_here("doctor", *NOWHERE, *places)
    problems = ("ray: no Ray cluster answers at 127.0.0.1:1", "mlflow: no MLflow store at", f"data: {tmp_path}: not a")
    for start in ("ok       disk: ", *(f"problem  {problem}" for problem in problems)):
        assert f"\n{start}" in run.stdout
    assert (run.exit_code, run.stderr.splitlines()[-1]) == (2, "Error: 3 problems: ray, mlflow, data")
    clip = tmp_path / "fan" / "train" / "section_00_source_train_normal_0000_noAttribute.wav"
    clip.parent.mkdir(parents=True)
    clip.touch()
    os.truncate(clip, 2 * shutil.disk_usage(tmp_path).free)  # takes no room itself
    found = checks(tutti_here("doctor", *NOWHERE, "--data", tmp_path, "--out", tmp_path / "out", "--json"))
    assert (found["disk"]["state"], "decoded clips take about" in found["disk"]["text"]) == ("warning", True)
    assert "fan section 0 has 1 training clip" in found["data"]["text"]
    assert found["mlflow"]["text"].endswith("out/mlflow.db will be made by the first run")


def installed(folder, name, release, code=""):
    """A package as pip would leave it."""
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n"
    for file, text in ((f"{name}-{release}.dist-info/METADATA", about), (f"{name}/__init__.py", code)):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text(text)


def broken(folder, *arguments):
    """What the command ends with where `folder` comes first on Python's path."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]])}
    run = subprocess.run([TUTTI, *map(str, arguments)], capture_output=True, text=True, timeout=240, env=env)
    assert (run.returncode, "Traceback" in run.stderr) == (2, False), run.stderr
    return run


@pytest.mark.slow
def test_the_doctor_names_an_old_package_and_one_that_does_not_load(tmp_path):
    check_installation()  # this one does
    installed(tmp_path, "hyperopt", "0.2.7")
    installed(tmp_path, "pyarrow", version("pyarrow"), "raise ImportError('libarrow.so: no such file')")
    run = broken(tmp_path, "doctor", "--json", *NOWHERE, "--data", tmp_path, "--out", tmp_path / "new" / "out")
    problems = {c["text"]: c["remedy"] for c in json.loads(run.stdout)["checks"] if c["state"] == "problem"}
    assert any("requirement hyperopt>=" in text for text in problems)
    assert problems["pyarrow does not load: libarrow.so: no such file"].endswith(" --upgrade --force-reinstall pyarrow")
    assert checks(run)["data"]["text"] == "ImportError: libarrow.so: no such file"
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_a_run_with_torchaudio_of_another_torch_ends_before_anything_is_decoded(dataset, store, tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL_SYSTEM)
    code = "raise OSError('libtorchaudio.so: undefined symbol: torch_dtype')"
    installed(tmp_path / "broken", "torchaudio", version("torchaudio"), code)
    options = ["--data", dataset, "--out", tmp_path / "out", "--tracking-uri", f"sqlite:///{store}"]
    run = broken(tmp_path / "broken", "run", tmp_path / "small.yaml", *options)
    cause, *_, remedy = run.stderr.strip().splitlines()[-1].split("; ")
    assert cause == "Error: torchaudio does not load: libtorchaudio.so: undefined symbol: torch_dtype"
    assert remedy == "pip install --upgrade --force-reinstall torch torchaudio"
    assert "starting Ray" not in run.stderr
    assert not list((tmp_path / "out").glob("cache/*"))
