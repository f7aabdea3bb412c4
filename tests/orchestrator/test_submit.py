"""What is sent to a cluster: a small folder that runs alone, and a run with the same options."""

import shlex
import subprocess
import sys

import pytest

from orchestrator.submit import run_command, shipped
from scoring.errors import InputError
from tests.commands import SMALL_SYSTEM, parsed

EVERY_OPTION = [
    *["--backbone", "/b.pt", "--set", "branch.training.steps=3", "--set", "detector=knn", "--json", "--compile"],
    *["--tracking-uri", "http://m:5000", "--storage", "s3://b/r", "--checkpoint-seconds", "0", "--fuse-incomplete"],
    *["--gpus-per-branch", "0.5", "--memory-per-branch", "2", "--cpus-per-branch", "3"],
]


def test_what_is_shipped_is_small_and_runs_alone(tmp_path):
    (tmp_path / "small.yaml").write_text(SMALL_SYSTEM)
    with shipped([str(tmp_path / "small.yaml"), "demo"]) as (folder, names):
        assert names == ["system0.yaml", "demo"]
        assert (folder / names[0]).read_text() == SMALL_SYSTEM
        assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 2 << 20
        code = "import orchestrator, importlib.metadata as m; print(orchestrator.__file__, m.version('tutti-asd'))"
        assert subprocess.check_output([sys.executable, "-c", code], cwd=folder, env={}).startswith(bytes(folder))
    assert not folder.exists()


def options_of_a_job(*more):
    """What `submit` hands on to the run."""
    words = ["submit", "s1", "--data", "/d a", "--out", "/o", "--address", "http://127.0.0.1:1", *more]
    return {key: value for key, value in parsed(*words).items() if key not in ("systems", "address", "no_follow")}


@pytest.mark.parametrize("options", [[], EVERY_OPTION])
def test_the_command_of_a_job_is_a_run_with_the_same_options(options):
    given = options_of_a_job(*options)
    assert not options or None not in given.values()
    words = shlex.split(run_command(["s1"], given))
    assert words[:4] == ["python", "-m", "orchestrator", "run"]
    assert parsed(*words[3:]) == {**given, "systems": ("s1",), "address": "auto"}


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--out", "o", "--out o: give the absolute path"),
        ("--backbone", "BEATs.pt", "--backbone BEATs.pt: give the absolute path"),
        ("--storage", "s3://key:secret@b/r", "--storage has a password in it"),
        ("--set", "branch.backbone.path=https://me:secret@b/c.pt", "--set has a password in it"),
    ],
)
def test_what_a_cluster_must_not_be_sent(option, value, message):
    with pytest.raises(InputError, match=f"^{message}"):
        run_command(["s1"], options_of_a_job(option, value))
