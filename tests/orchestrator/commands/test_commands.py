"""The command line: help, logs, completion, errors, the doctor; and commands that call what is tested elsewhere."""

import errno
import json
import os
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from unittest.mock import Mock

import click
import pytest
import yaml

from branches.data.synthetic import SyntheticSize
from orchestrator.cli import main
from orchestrator.cost import duration
from orchestrator.doctor import check_installation
from orchestrator.submit import run_command, shipped
from scoring.calibration import transductive_normalisation
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import read_table, write_table
from tests.commands import SMALL_SYSTEM, TUTTI, checksums, parsed, tutti, tutti_here
from tests.orchestrator.conftest import LABEL, write_truth
from tests.tables import make_table


def test_help_has_an_example_for_every_command_and_a_text_for_every_option_and_the_shell_completes_them():
    found = {}
    for name, command in main.commands.items():
        below = command.commands if isinstance(command, click.Group) else {"": command}
        found.update({f"{name} {word}".strip(): inner for word, inner in below.items()})
    assert len(found) == 22
    for words, command in found.items():
        page = tutti_here(*words.split(), "--help")
        assert (page.exit_code, f"Example: tutti {words}" in page.stdout) == (0, True)
        assert tutti_here(*words.split(), "-h").stdout == page.stdout
        assert [p.opts for p in command.params if isinstance(p, click.Option) and not p.help] == []
    assert version("tutti-asd") in tutti_here("--version").stdout
    for words, told in (("su", "plain,submission plain,submit"), ("run so", "plain,solo"), ("run /", "file,/")):
        begun = {"COMP_WORDS": f"tutti {words}", "COMP_CWORD": f"{1 + words.count(' ')}"}
        environment = {**os.environ, "_TUTTI_COMPLETE": "bash_complete", **begun}
        assert {*subprocess.check_output([TUTTI], env=environment, text=True).split()} == {*told.split()}


def test_what_only_lists_or_plans_loads_no_statistics_and_no_torch(dataset):
    code = (
        "import sys; from orchestrator.cli import main; main(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    )
    for words in (["systems"], ["plan", "solo", "--data", dataset]):
        printed = subprocess.check_output([sys.executable, "-c", code, *words], text=True)
        assert not {"scipy.stats", "sklearn", "torch", "mlflow", "ray"} & {*printed.split()}


def test_less_and_more_of_a_log(tmp_path):
    fuse = ["fuse", "--tables", tmp_path, "--out", tmp_path / "out"]
    plain, quiet, verbose = (tutti(*flag, *fuse).stderr for flag in ([], ["-q"], ["-v"]))
    assert plain.startswith(f"reading score tables from {tmp_path}\nError: {tmp_path}")
    assert quiet == plain.partition("\n")[2]
    assert f" orchestrator.commands.scores: reading score tables from {tmp_path}\n" in verbose
    assert "contradict each other" in tutti_here("-q", "-v", "systems").stderr


def test_systems_are_listed_and_shown_as_they_will_be_used_and_so_are_all_settings_on_any_terminal():
    page = (Path(__file__).parents[3] / "docs" / "settings.md").read_text(encoding="utf-8")
    assert tutti_here("show", "--settings").stdout == page, "tutti show --settings > docs/settings.md"
    environment = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    assert rb"\u03b3" in subprocess.check_output([TUTTI, "show", "--settings"], env=environment)
    listed = [system["name"] for system in json.loads(tutti_here("systems", "--json").stdout)["systems"]]
    lines = tutti_here("systems").stdout.splitlines()
    assert [line.partition(" (")[0] for line in lines] == listed
    assert "s2 (10 score tables): System 2 of the report" in "\n".join(lines)
    shown = yaml.safe_load(tutti_here("show", "s1", "--backbone", "tiny", "--set", "branch.training.steps=30").stdout)
    (branch,) = [c["branch"] for c in shown["subsystems"]["mahalanobis"].values()]
    assert (branch["backbone"]["path"], branch["training"]["steps"]) == ("tiny", 30)
    assert json.loads(tutti_here("show", "s1", "--json").stdout)["name"] == "s1"


def test_a_fault_of_the_user_or_place_or_output_is_one_line_and_of_the_program_a_traceback(tmp_path, monkeypatch):
    for raised, code, told in (
        (InputError("a.csv: is empty"), 2, "Error: a.csv: is empty\n"),
        (OSError(errno.ENOSPC, "No space left", "/full"), 2, "Error: /full: No space left; make room, or give another"),
        (ImportError("no libarrow"), 2, "Error: no libarrow; `tutti doctor` says which package to install\n"),
        (KeyboardInterrupt(), 130, "Error: interrupted; what is finished is kept, run again to continue\n"),
        (OSError(errno.EIO, "Input/output error", "/disk"), 2, "Error: /disk: Input/output error; give another path\n"),
        (OSError(errno.EIO, "Input/output error"), 1, None),
        (ZeroDivisionError(), 1, None),
    ):
        monkeypatch.setattr("orchestrator.system.built_in_systems", Mock(side_effect=raised))
        run = tutti_here("systems")
        assert run.exit_code == code
        assert run.stderr.startswith(told) if told else run.exception is raised
    monkeypatch.undo()
    (tmp_path / "loop").symlink_to("loop")
    with open("/dev/full", "w") as full:
        run = subprocess.run([TUTTI, "systems"], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (run.returncode, run.stderr) == (2, "Error: standard output: No space left on device\n")
    for path, told in ((tmp_path / ("x" * 300), "File name too long"), (tmp_path / "loop" / "x", "Too many levels")):
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
def test_the_doctor_finds_a_sound_place_and_names_those_that_cannot_be_used_or_have_no_room(dataset, store, tmp_path):
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
    (tmp_path / "text.db").write_text("not a database " * 100)
    places = ["--data", tmp_path, "--out", tmp_path, "--tracking-uri", f"sqlite:///{tmp_path / 'text.db'}"]
    run = tutti_here("doctor", *NOWHERE, *places)
    problems = ("ray: no Ray cluster answers at 127.0.0.1:1", "mlflow: the MLflow store", f"data: {tmp_path}: not a")
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
    about = f"Metadata-Version: 2.1\nName: {name}\nVersion: {release}\n"
    for file, text in ((f"{name}-{release}.dist-info/METADATA", about), (f"{name}/__init__.py", code)):
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text(text)


def broken(folder, *arguments):
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path[1:]])}
    run = subprocess.run([TUTTI, *map(str, arguments)], capture_output=True, text=True, timeout=240, env=env)
    assert (run.returncode, "Traceback" in run.stderr) == (2, False), run.stderr
    return run


@pytest.mark.slow
def test_an_old_package_and_one_that_does_not_load_are_named_by_the_doctor_and_by_a_run(dataset, store, tmp_path):
    check_installation()  # this one does
    installed(tmp_path / "old", "hyperopt", "0.2.7")
    installed(tmp_path / "old", "pyarrow", version("pyarrow"), "raise ImportError('libarrow.so: no such file')")
    places = ["--data", dataset, "--out", tmp_path / "new" / "out"]
    run = broken(tmp_path / "old", "doctor", "--json", *NOWHERE, *places)
    problems = {c["text"]: c["remedy"] for c in json.loads(run.stdout)["checks"] if c["state"] == "problem"}
    assert any("requirement hyperopt>=" in text for text in problems)
    assert problems["pyarrow does not load: libarrow.so: no such file"].endswith(" --upgrade --force-reinstall pyarrow")
    assert checks(run)["data"]["text"] == "ImportError: libarrow.so: no such file"
    assert not (tmp_path / "new").exists()
    code = "raise OSError('libtorchaudio.so: undefined symbol: torch_dtype')"  # as beside another torch
    installed(tmp_path / "broken", "torchaudio", version("torchaudio"), code)
    run = broken(tmp_path / "broken", "run", "demo", *places, "--tracking-uri", f"sqlite:///{store}")
    cause, *_, remedy = run.stderr.strip().splitlines()[-1].split("; ")
    assert cause == "Error: torchaudio does not load: libtorchaudio.so: undefined symbol: torch_dtype"
    assert remedy == "pip install --upgrade --force-reinstall torch torchaudio"
    assert not list((tmp_path / "new" / "out").glob("cache/*/"))


def test_a_data_set_is_made_checked_never_overwritten_and_not_used_with_a_damaged_clip(store, monkeypatch, tmp_path):
    monkeypatch.setattr("branches.data.synthetic.DEMO", SyntheticSize(3, 2, 1, 1.0))
    data = tmp_path / "data"
    made, checked = tutti_here("data", "synth", data, "--seed", 3), tutti_here("data", "check", data, "--json")
    found, before = json.loads(checked.stdout), checksums(data)
    assert (made.exit_code, checked.exit_code, found["problems"], len(found["machines"]) >= 3) == (0, 0, [], True)
    assert made.stdout == f"{found['clips']} clips in {data}\n"
    again = tutti_here("data", "synth", data)
    assert (again.exit_code, len(again.stderr.splitlines())) == (2, 1)
    for out in (tmp_path, tmp_path / "other"):
        assert "no Ray cluster answers" in tutti_here("demo", "--out", out, "--address", "127.0.0.1:1").stderr
    assert checksums(data) == before
    assert checksums(tmp_path / "other" / "data").items().isdisjoint(before.items())  # of another seed
    clip, places = next(data.rglob("*.wav")), ["--data", data, "--out", tmp_path / "out"]
    clip.write_bytes(clip.read_bytes()[:5000])
    run = ["run", "demo", *places, "--tracking-uri", f"sqlite:///{store}"]
    for refused in (tutti_here("data", "check", data), tutti_here(*run)):  # before it starts a Ray
        assert (refused.exit_code, f"{clip.name}: truncated" in refused.stderr) == (2, True)
        assert "starting Ray" not in refused.stderr


def test_plan_lists_the_branches_and_their_cost_also_without_the_checkpoint(dataset, tmp_path, monkeypatch):
    plan = ["plan", "s1", "s2", "--data", dataset, "--backbone", "tiny"]
    result = json.loads(tutti_here(*plan, "--json").stdout)
    branches, costs = result["branches"], (result["gpu_hours"], result["cpu_hours"])
    assert len(branches) == len({branch["branch_id"] for branch in branches}) == 11
    assert branches[0]["systems"] == ["s1", "s2"]
    assert {branch["done"] for branch in branches} == {None}
    assert sum(branch["pflop"] for branch in branches) == pytest.approx(360 * costs[0])
    assert [table["name"] for table in result["tables"]] == [branch["name"] for branch in branches]
    *rows, last = tutti_here(*plan, "--out", tmp_path).stdout.splitlines()
    gpu, cpu = (duration(3600 * hours) for hours in costs)
    cost = f"about {gpu} of a GPU at 100 TFLOP/s, or {cpu} of a CPU core; {result['disk_gb']:.1f} GB of disk"
    assert last == f"10 trainings, 11 tables, 11 to do: {cost}"
    assert ["to do" in row for row in rows] == [False, *[True] * 11]
    assert not list(tmp_path.iterdir())
    monkeypatch.setenv("TUTTI_CACHE", str(tmp_path))
    notes = {"BEATs_iter3": ["is not in the cache; a run fetches it, 361 MB"], "a.pt": ["no such file", "provisional"]}
    for backbone, messages in notes.items():
        without = tutti_here("plan", "s1", "--data", dataset, "--backbone", backbone)
        assert (without.exit_code, "1 training, 2 tables, 2 to do" in without.stdout) == (0, True)
        assert [message in without.stderr for message in messages] == [True] * len(messages)


def measured(*arguments):
    run = tutti_here("metrics", *arguments, "--json")
    assert run.exit_code == 0, run.output
    return json.loads(run.stdout)


def test_metrics_of_several_tables_of_one_without_training_rows_and_of_others_with_ground_truth(case, tmp_path):
    tables = make_table(seed=0), make_table(seed=1), transductive_normalisation(make_table(train=0))
    first, second, bare = paths = [tmp_path / f"{number}.parquet" for number in range(3)]
    for table, path in zip(tables, paths, strict=True):
        write_table(table, path)
    expected, one = official_metrics(tables[0]), measured(first)
    assert (one["omega"], one["machines"]) == (expected.omega, expected.as_dict()["machines"])
    low, high = one["ci"]["omega"]
    assert low < expected.omega < high
    assert (one["decisions"]["fan"]["recall"] is not None, one["transductive"]) == (True, False)
    assert measured(first, second)["tables"][str(first)] == one
    run = tutti_here("metrics", first)
    assert run.stdout.splitlines()[-1].endswith(f" {expected.omega:.2f} ({low:.1f}–{high:.1f})")
    assert ("precision" in run.stdout, run.stderr) == (True, "")
    run = tutti_here("metrics", bare)
    assert (run.exit_code, "precision" in run.stdout) == (0, False)
    for told in ("no decisions: machine fan section 0 has 0 training clips", "of test clips have reached these scores"):
        assert told in run.stderr
    systems = [case.folder / "task2" / f"{LABEL}_{n}" for n in (1, 2)]
    fused, other = (case.run / "systems" / name / "fused.parquet" for name in ("s1", "s2"))
    omega = measured(*systems)["tables"][str(systems[0])]["omega"]
    assert omega == pytest.approx(official_metrics(read_table(fused)).omega)
    write_truth(tmp_path, "fan", [row for row in read_table(fused).to_pylist() if row["machine"] == "fan"])
    for given, same, decided in ((fused, fused, True), (systems[1], other, False)):
        found = measured(given, "--ground-truth", tmp_path)
        assert found["machines"] == {"fan": official_metrics(read_table(same)).as_dict()["machines"]["fan"]}
        assert bool(found["decisions"]) == decided


EVERY_OPTION = [
    *["--backbone", "/b.pt", "--set", "branch.training.steps=3", "--set", "detector=knn", "--json", "--compile"],
    *["--tracking-uri", "http://m:5000", "--storage", "s3://b/r", "--checkpoint-seconds", "0", "--fuse-incomplete"],
    *["--gpus-per-branch", "0.5", "--memory-per-branch", "2", "--cpus-per-branch", "3"],
]


def options_of_a_job(*more):
    words = ["submit", "s1", "--data", "/d a", "--out", "/o", "--address", "http://127.0.0.1:1", *more]
    return {key: value for key, value in parsed(*words).items() if key not in ("systems", "address", "no_follow")}


def test_a_job_is_a_run_with_its_options_no_relative_path_or_password_and_ships_little(monkeypatch, tmp_path):
    assert None not in options_of_a_job(*EVERY_OPTION).values()
    for given in (options_of_a_job(), options_of_a_job(*EVERY_OPTION)):
        words = shlex.split(run_command(["s1"], given))
        assert words[:4] == ["python", "-m", "orchestrator", "run"]
        assert parsed(*words[3:]) == {**given, "systems": ("s1",), "address": "auto"}
    for option, value, message in (
        ("--out", "o", "--out o: give the absolute path"),
        ("--backbone", "BEATs.pt", "--backbone BEATs.pt: give the absolute path"),
        ("--storage", "s3://key:secret@b/r", "--storage has a password in it"),
        ("--set", "branch.backbone.path=https://me:secret@b/c.pt", "--set has a password in it"),
    ):
        with pytest.raises(InputError, match=f"^{message}"):
            run_command(["s1"], options_of_a_job(option, value))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://m:5000")
    monkeypatch.setenv("RAY_ADDRESS", "r:6379")
    given = parsed("run", "demo", "--data", "d", "--out", "o")
    assert (given["tracking_uri"], given["address"]) == ("http://m:5000", "r:6379")
    (tmp_path / "small.yaml").write_text(SMALL_SYSTEM)
    with shipped([str(tmp_path / "small.yaml"), "demo"]) as (folder, names):
        assert names == ["system0.yaml", "demo"]
        assert (folder / names[0]).read_text() == SMALL_SYSTEM
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 3 << 20
        code = "import orchestrator, importlib.metadata as m; print(orchestrator.__file__, m.version('tutti-asd'))"
        assert subprocess.check_output([sys.executable, "-c", code], cwd=folder, env={}).startswith(bytes(folder))
    assert not folder.exists()
