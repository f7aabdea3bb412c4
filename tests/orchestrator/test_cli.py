"""Commands and errors that need no training."""

import json
import os
import subprocess
from importlib.metadata import version
from pathlib import Path

import click
import numpy as np
import pytest
import soundfile
import yaml

from branches.data.synthetic import SyntheticSize, write_dataset
from orchestrator.cli import main
from scoring.calibration import transductive_normalisation
from scoring.metrics import official_metrics
from scoring.table import write_table
from tests.commands import TUTTI, tutti, tutti_here
from tests.tables import make_table


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("cli") / "data"
    write_dataset(root, SyntheticSize(3, 2, 1, 1.0), machines=["rotor", "pump"])
    return root


def commands_of(group, *names):
    """Every command below a group, as the words that call it."""
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands_of(command, *names, name)
        else:
            yield [*names, name]


def test_help_has_an_example_for_every_command():
    found = list(commands_of(main))
    assert ["submission", "check"] in found
    for command in found:
        page = tutti_here(*command, "--help")
        assert page.exit_code == 0
        assert f"Example: tutti {' '.join(command)}" in page.stdout
        assert tutti_here(*command, "-h").stdout == page.stdout
    assert version("tutti-asd") in tutti_here("--version").stdout


def test_every_option_has_a_help_text():
    for words in commands_of(main):
        command = main
        for word in words:
            command = command.commands[word]
        assert [p.opts for p in command.params if isinstance(p, click.Option) and not p.help] == []


def test_less_and_more_of_a_log(tmp_path):
    table = make_table(["fan", "pump"], 6)
    (tmp_path / "tables").mkdir()
    for name in "ab":
        write_table(table, tmp_path / "tables" / f"{name}.parquet")
    command = [TUTTI, "fuse", "--tables", tmp_path / "tables", "--out", tmp_path / "out"]
    plain, quiet, verbose = (
        subprocess.run([TUTTI, *flag, *command[1:]], capture_output=True, text=True, check=True, timeout=120)
        for flag in ([], ["-q"], ["-v"])
    )
    assert "index.csv: not there" in plain.stderr
    assert quiet.stderr == ""
    assert quiet.stdout == plain.stdout == verbose.stdout
    assert "orchestrator.fuse.tables: " in verbose.stderr


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("tutti su", ["submit", "submission"]),
        ("tutti run s", ["s1", "s2", "s3", "s4", "s5", "solo"]),
        ("tutti submission ", ["make", "check"]),
        ("tutti plan --backb", ["--backbone"]),
    ],
)
def test_the_shell_completes(words, completions):
    source = {**os.environ, "_TUTTI_COMPLETE": "bash_source"}
    script = subprocess.run([TUTTI], env=source, capture_output=True, text=True, check=True).stdout
    assert "complete -o nosort -F _tutti_completion tutti" in script
    call = f"{script}\nCOMP_WORDS=({words}); COMP_CWORD={len(words.split(' ')) - 1}; _tutti_completion tutti"
    path = f"{Path(TUTTI).parent}:{os.environ['PATH']}"
    shown = subprocess.run(
        ["bash", "-c", call + '; printf "%s\n" "${COMPREPLY[@]}"'],
        env={**os.environ, "PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert sorted(shown.stdout.split()) == sorted(completions)


def test_plan_lists_the_branches(data):
    result = json.loads(tutti_here("plan", "s1", "s2", "--data", data, "--backbone", "tiny", "--json").stdout)
    assert len(result["branches"]) == 11  # the one of s1 is among the ten of s2; the baseline belongs to no system
    assert result["branches"][0]["systems"] == ["s1", "s2"]
    assert {branch["done"] for branch in result["branches"]} == {None}
    assert len({branch["branch_id"] for branch in result["branches"]}) == 11
    assert result["gpu_hours"] > 0


def test_plan_without_the_checkpoint_says_so(data):
    run = tutti_here("plan", "s1", "--data", data)
    assert run.exit_code == 0
    assert "2 branches, 2 to train" in run.stdout
    assert "BEATs_iter3.pt: no such file" in run.stderr
    assert "provisional" in run.stderr


def test_synth_and_check(tmp_path, monkeypatch):
    monkeypatch.setattr("branches.data.synthetic.DEMO", SyntheticSize(3, 2, 1, 1.0))
    made = tutti_here("data", "synth", tmp_path / "data", "--seed", 3)
    assert made.exit_code == 0, made.stderr
    checked = tutti_here("data", "check", tmp_path / "data", "--json")
    found = json.loads(checked.stdout)
    assert checked.exit_code == 0
    assert found["problems"] == []
    assert len(found["machines"]) >= 3
    assert str(found["clips"]) in made.stdout
    again = tutti_here("data", "synth", tmp_path / "data")
    assert again.exit_code == 2
    assert len(again.stderr.splitlines()) == 1


def test_check_names_every_bad_clip(tmp_path):
    write_dataset(tmp_path / "data", SyntheticSize(3, 2, 1, 1.0), machines=["rotor"])
    clips = sorted((tmp_path / "data" / "rotor" / "train").iterdir())
    clips[0].write_bytes(b"")
    clips[1].write_bytes(clips[1].read_bytes()[:5000])
    run = tutti_here("data", "check", tmp_path / "data")
    assert run.exit_code == 2
    assert clips[0].name in run.stderr
    assert f"{clips[1].name}: truncated" in run.stderr
    assert "2 of 9 clips cannot be used" in run.stderr


def test_metrics_of_one_and_of_several_tables(tmp_path):
    for seed in (0, 1):
        write_table(make_table(seed=seed), tmp_path / f"{seed}.parquet")
    expected = official_metrics(make_table(seed=0))
    one = json.loads(tutti_here("metrics", tmp_path / "0.parquet", "--json").stdout)
    assert one["omega"] == expected.omega
    assert one["machines"] == expected.as_dict()["machines"]
    assert one["ci"]["omega"][0] < expected.omega < one["ci"]["omega"][1]
    assert one["decisions"]["fan"]["recall"] is not None
    assert not one["transductive"]
    both = json.loads(tutti_here("metrics", tmp_path / "0.parquet", tmp_path / "1.parquet", "--json").stdout)
    assert both["tables"][str(tmp_path / "0.parquet")] == one
    shown = tutti_here("metrics", tmp_path / "0.parquet").stdout
    assert f"{expected.omega:.2f} ({one['ci']['omega'][0]:.1f}–" in shown
    assert "precision" in shown


def test_metrics_of_a_table_without_training_rows(tmp_path):
    table = make_table(train=0)
    write_table(transductive_normalisation(table), tmp_path / "t.parquet")
    run = tutti_here("metrics", tmp_path / "t.parquet")
    assert run.exit_code == 0
    assert "precision" not in run.stdout
    assert "no decisions: machine fan section 0 has 0 training clips" in run.stderr
    assert "statistics of test clips have reached these scores" in run.stderr


def lines_of(run):
    return [line for line in run.stderr.splitlines() if line]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "s99", "--data", "{data}", "--out", "{out}"], "unknown system 's99'"),
        (["run", "{yaml}", "--data", "{data}", "--out", "{out}"], "bad.yaml: colour: unknown key; allowed:"),
        (["run", "demo", "--data", "{out}", "--out", "{out}"], "not a data set"),
        (["run", "demo", "--data", "{data}/rotor", "--out", "{out}"], "give its parent"),
        (["run", "s1", "--data", "{data}", "--out", "{out}"], "BEATs_iter3.pt: no such file"),
        (["run", "demo", "--data", "{nan}", "--out", "{out}"], "noAttribute.wav: a sample is not a finite number"),
        (["run", "demo", "--data", "{data}", "--out", "{yaml}"], "cannot write there"),
        (
            ["run", "demo", "--data", "{data}", "--out", "{out}", "--tracking-uri", "http://127.0.0.1:1"],
            "no MLflow server answers",
        ),
        (["run", "demo", "--data", "{data}", "--out", "{out}", "--address", "127.0.0.1:1"], "no Ray cluster answers"),
        (
            ["run", "demo", "--data", "{data}", "--out", "{out}", "--tracking-uri", "http://a:b@127.0.0.1:1"],
            "set MLFLOW_TRACKING_USERNAME",
        ),
        (
            ["run", "demo", "--data", "{data}", "--out", "{out}", "--address", "http://127.0.0.1:1"],
            "use `tutti submit`",
        ),
        (["submit", "demo", "--data", "{data}", "--out", "{out}", "--address", "127.0.0.1:1"], "give the dashboard's"),
        (
            ["submit", "demo", "--data", "{data}", "--out", "{out}", "--address", "http://127.0.0.1:1"],
            "no Ray dashboard",
        ),
        (
            ["submit", "demo", "--data", "data", "--out", "{out}", "--address", "http://127.0.0.1:1"],
            "the absolute path",
        ),
        (
            ["run", "demo", "--data", "{data}", "--out", "{out}", "--gpus-per-branch", "2"],
            "2.0 is not in the range 0<=x<=1",
        ),
        (["demo", "--out", "{yaml}"], "Not a directory"),
        (["ui", "--out", "{data}"], "no such store"),
        (["metrics", "{yaml}"], "not a readable Parquet file"),
        (["report", "{data}"], "no results to report"),
    ],
)
def test_a_users_error_is_one_line_and_exit_code_2(arguments, message, data, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "bad.yaml").write_text("name: bad\ncolour: blue\nsubsystems: {a: {b: }}")
    nan = tmp_path / "nan" / "fan" / "train"
    nan.mkdir(parents=True)
    samples = np.zeros(16_000)
    samples[5] = np.nan
    for i in range(3):
        soundfile.write(
            nan / f"section_00_source_train_normal_{i:04d}_noAttribute.wav", samples, 16_000, subtype="FLOAT"
        )
    places = {"data": data, "out": tmp_path / "out", "yaml": tmp_path / "bad.yaml", "nan": tmp_path / "nan"}
    run = tutti_here(*[a.format(**places) for a in arguments])
    assert run.exit_code == 2
    assert message in lines_of(run)[-1]
    assert isinstance(run.exception, SystemExit)
    assert run.stdout == ""


def test_a_users_error_has_no_traceback(tmp_path):
    run = tutti("data", "check", tmp_path / "none")
    assert run.returncode == 2
    assert (
        run.stderr == f"Error: {tmp_path / 'none'}: no such folder; give the folder that holds one folder per machine\n"
    )


def test_systems_are_listed_and_shown_as_they_will_be_used():
    listed = json.loads(tutti_here("systems", "--json").stdout)["systems"]
    assert {"s1", "s2", "s3", "s4", "s5", "demo"} <= {system["name"] for system in listed}
    shown = tutti_here("show", "s1", "--backbone", "tiny", "--set", "branch.training.steps=30")
    (configuration,) = yaml.safe_load(shown.stdout)["subsystems"]["mahalanobis"].values()
    assert configuration["branch"]["backbone"]["path"] == "tiny"
    assert configuration["branch"]["training"]["steps"] == 30
    assert configuration["branch"]["training"]["accumulation"] == 1  # a default
    assert tutti_here("show", "s1", "--json").exit_code == 0


def test_addresses_come_from_the_environment_as_everywhere_else(monkeypatch, data, tmp_path):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    refused = tutti_here("run", "s1", "--data", tmp_path, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "no Ray cluster answers at 127.0.0.1:1" in refused.stderr
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    refused = tutti_here("run", "demo", "--data", data, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert "no MLflow server answers at http://127.0.0.1:1" in refused.stderr
