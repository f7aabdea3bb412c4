"""What a packaged ensemble consists of, that it needs nothing else, and what MLflow's own server makes of it."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from orchestrator.ledger.folders import read_record, write_record
from orchestrator.model.ensemble import Ensemble
from orchestrator.model.export import REQUIRED, export_system
from orchestrator.model.manifest import MANIFEST, package_of
from scoring.errors import InputError
from scoring.table import metadata_of, read_table, write_table
from tests.commands import free_port, tutti_here
from tests.finished import BACKBONE, NAME, manifest_of
from tests.test_readme import answer

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[3]
OUTSIDE = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


def test_it_holds_a_shared_backbone_once_adapters_for_lora_no_pickled_object_and_the_names_of_its_packages(model):
    package, manifest = package_of(model), manifest_of(model)
    names = {member["name"].rpartition("/")[0]: member["branch_id"] for member in manifest["members"]}
    places = {name: manifest["branches"][id]["backbone"]["path"] for name, id in names.items()}
    (stored,) = (package / "backbones").glob("*/*")
    assert stored.read_bytes() == BACKBONE.read_bytes()
    assert [places.pop(f"frozen/{name}") for name in ("built_in", "log_mel")] == ["tiny", "log_mel"]
    assert set(places.values()) == {str(stored.relative_to(package))}
    trained = {path.stem for path in (package / "branches").iterdir()}
    assert trained == {names[f"trained/{name}"] for name in ("full", "lora", "generated")}
    assert sorted(path.name for path in (package / "normals").iterdir()) == ["0.npz", "1.npz"]
    lora, full = (package / "branches" / f"{names[name]}.pt" for name in ("trained/lora", "trained/full"))
    changed = torch.load(lora, weights_only=True)["changed"]
    assert {name for name in changed if "lora" not in name} == {"projection.weight", "projection.bias"}
    assert lora.stat().st_size < full.stat().st_size / 10
    described = yaml.safe_load((model / "MLmodel").read_text())["flavors"]["python_function"]
    assert "python_model" not in described
    files = [path for path in model.rglob("*") if path.is_file()]
    kinds = {path.suffix for path in files if "code" not in path.relative_to(model).parts}
    assert kinds == {"", ".py", ".json", ".yaml", ".txt", ".pt", ".npz"}
    for path in files:
        if path.suffix == ".pt":
            torch.load(path, weights_only=True)
        elif path.suffix == ".npz":
            assert all(array.dtype != object for array in np.load(path, allow_pickle=False).values())
        else:
            assert path.read_bytes()[:1] != b"\x80", path
    assert (model / "requirements.txt").read_text().splitlines()[0].startswith("torch==")
    packages = {path.name for path in (model / "code").iterdir()}
    assert packages == {"orchestrator", "branches", "fusion", "scoring"}
    code = "import sys, orchestrator.model.mlflow_model; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=model / "code").split()
    assert {*REQUIRED} - {"torchaudio", "fsspec"} <= {*loaded}  # these when it scores or fetches
    assert {name for name in loaded if (model / "code" / name).exists()} == packages


ALONE = """
import json, sys

def refuse(event, arguments):
    if event == "open" and str(arguments[0]).startswith(tuple(forbidden)):
        raise PermissionError(arguments[0])

class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("ray", "hyperopt", "rich", "cluster", "matplotlib"):
            raise ModuleNotFoundError(name)

model, forbidden, clips = json.loads(sys.argv[1])
content = {machine: [open(path, "rb").read() for path in paths] for machine, paths in clips.items()}
sys.addaudithook(refuse)
sys.meta_path.insert(0, NotInstalled())
import mlflow.pyfunc, pandas
loaded = mlflow.pyfunc.load_model(model)
rows = [{"machine": machine, "audio": audio} for machine, some in content.items() for audio in some]
print(json.dumps(loaded.predict(pandas.DataFrame(rows)).to_dict("records")))
"""


def test_it_works_moved_and_alone_without_tutti_s_own_code_the_run_and_most_packages(run, model, tmp_path):
    clips = {machine: [str(path) for path in run.clips(machine)] for machine in ("rotor", "pump")}
    code = [str(ROOT / name) for name in ("orchestrator", "branches", "fusion", "scoring", "cluster")]
    argument = json.dumps([str(shutil.copytree(model, tmp_path / "copy")), [str(run.folder), *code], clips])
    command = [sys.executable, "-c", ALONE, argument]
    asked = subprocess.run(command, cwd=tmp_path, env=OUTSIDE, capture_output=True, text=True, timeout=120)
    assert asked.returncode == 0, asked.stderr
    rows = json.loads(asked.stdout.splitlines()[-1])
    for name in ("score", "calibrated"):
        expected = [value for machine in clips for value in run.fused(machine)[name].to_pylist()]
        assert [row[name] for row in rows] == pytest.approx(expected, abs=1e-5)
    for row in rows:
        assert row["anomaly"] is (row["score"] > row["threshold"])
        assert sum(json.loads(row["contributions"]).values()) == pytest.approx(row["score"])


def refusal(*words):
    refused = tutti_here(*words)
    assert refused.exit_code == 2
    return refused.stderr.splitlines()[-1]


@pytest.mark.parametrize("part", ["backbones/*/*.pt", "branches/*.pt", "normals/*.npz"])
def test_a_damaged_or_missing_file_is_named_when_the_model_is_opened(run, model, tmp_path, part):
    copied = shutil.copytree(model, tmp_path / "copy")
    victim = sorted(package_of(copied).glob(part))[0]
    content = victim.read_bytes()
    for damage in (content[:-1], content[:100], b"", bytes(len(content))):
        victim.write_bytes(damage)
        with pytest.raises(InputError, match=victim.name):
            Ensemble(copied)
    if part.startswith("normals"):  # what the list at its end says of it is whole
        victim.write_bytes(content.replace(b"\x3f", b"\x40"))
        told = refusal("score", copied, *run.clips("pump"))
        assert f"{victim.name}: missing or damaged; export the system again" in told
    victim.unlink()
    assert victim.name in refusal("score", copied, run.clips("rotor")[0])
    (package_of(copied) / MANIFEST).write_text("{}")
    with pytest.raises(InputError, match="damaged, or of another version of tutti"):
        Ensemble(copied)
    with pytest.raises(InputError, match="no packaged ensemble; `tutti export` makes one"):
        Ensemble(run.out)


@pytest.fixture
def moved(run, tmp_path):
    return shutil.copytree(run.out, tmp_path / "moved")


def test_a_run_that_was_moved_gives_the_same_package_and_what_has_no_weight_is_left_out(moved, model, tmp_path):
    out = tmp_path / "folder" / "again"
    assert export_system(moved, None, out) == out
    assert manifest_of(out) == manifest_of(model)
    path = moved / "systems" / NAME / "result.json"
    result = json.loads(path.read_text())
    lora = [b["table"] for b in result["branches"] if "/lora" in b["branch"]]
    result["delivered"]["table_weights"] |= dict.fromkeys(lora, 0.0)
    result["made"]["data"] = "/nowhere"
    path.write_text(json.dumps(result))
    small = manifest_of(export_system(moved, NAME, tmp_path / "small"))
    assert len(small["members"]) == len(result["branches"]) - len(lora)
    assert lora[0].partition("/")[0] not in json.dumps(small)
    clips = [np.zeros((16_000, 1), np.float32)]
    told = [Ensemble(place).score("rotor", clips)["changed"][0].as_py() for place in (out, tmp_path / "small")]
    assert ("below normal" in told[0], told[1]) == (True, None)  # recordings that are gone tell nothing


def test_what_cannot_be_exported_is_named_and_leaves_nothing(moved, model, tmp_path):
    out = ("--out", tmp_path / "out")
    assert "no result of system 'other'; there are golden" in refusal("export", moved, "other", *out)
    assert "no results in it; `tutti run` makes them" in refusal("export", tmp_path, *out)
    assert "exists already; give another --out" in refusal("export", moved, "--out", model)
    second = shutil.copytree(moved / "systems" / NAME, moved / "systems" / "second")
    assert "name one of its systems, golden, second" in refusal("export", moved, *out)
    shutil.rmtree(second)
    weights = sorted(moved.glob("branches/*/branch.pt"))[0]
    content = weights.read_bytes()
    weights.write_bytes(content[:-1])
    damaged = f"{weights}: lost or damaged; remove {weights.parent}, and `tutti run`"
    assert damaged in refusal("export", moved, NAME, *out)
    weights.write_bytes(content)
    away = weights.parent.rename(moved / "away")
    assert f"{weights.parent / 'record.json'}: lost or damaged" in refusal("export", moved, *out)
    away.rename(weights.parent)
    for path in moved.glob("branches/*/tables/*.parquet"):
        table, record = read_table(path), read_record(path.parents[1])
        gone = {k: re.sub(r'[^"]*pretrained\.pt', "/nowhere/b.pt", v) for k, v in metadata_of(table).items()}
        files = {f"tables/{path.name}": write_table(table.replace_schema_metadata(gone), path)}
        write_record(path.parents[1], record.model_copy(update={"files": {**record.files, **files}}))
    told = "a branch's backbone must lie where the run had it: /nowhere/b.pt: no such file"
    assert told in refusal("export", moved, *out)
    assert [path.name for path in tmp_path.iterdir()] == ["moved"]


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    folder, port, bin = tmp_path_factory.mktemp("server"), free_port(), Path(sys.executable).parent
    environment = {**OUTSIDE, "PATH": f"{bin}{os.pathsep}{os.environ['PATH']}"}  # as in one that is active
    command = [bin / "mlflow", "models", "serve", "--model-uri", model, "--port", str(port), "--env-manager", "local"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        answer(f"http://127.0.0.1:{port}/ping", seconds=120)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def ask(url, *rows, **form):
    body = json.dumps(form or {"dataframe_records": rows}).encode()
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def row(path, machine="rotor", **others):
    return {"machine": machine, "audio": base64.b64encode(path.read_bytes()).decode(), **others}


def test_a_server_understands_every_form_of_request_warns_of_odd_recordings_and_answers_bad_ones(run, url, tmp_path):
    good = row(run.clips("rotor")[0])
    _, expected = ask(url, good)
    assert isinstance(expected["predictions"][0]["changed"], str)
    assert expected["predictions"][0]["score"] == pytest.approx(run.fused("rotor")["score"][0].as_py(), abs=1e-5)
    for section in (None, 0, 0.0, "0"):  # beside a row without one
        assert ask(url, {**good, "section": section}, good) == (200, {"predictions": 2 * expected["predictions"]})
    for machine in ("rotor", "nowhere"):
        for form in (
            {"dataframe_split": {"columns": ["machine", "audio"], "data": [[machine, good["audio"]]]}},
            {"instances": [{"machine": machine, "audio": good["audio"]}]},
            {"inputs": {"machine": [machine], "audio": [good["audio"]]}},
            {"inputs": {"machine": [machine], "audio": [{"b64": good["audio"]}]}},
        ):
            status, found = ask(url, **form)
            if machine == "rotor":
                assert (status, found) == (200, expected)
            else:
                assert (status, len(json.dumps(found)) < 1_000) == (400, True)
                assert found["message"].startswith("row 0: the model does not know machine nowhere")
    clip = run.clips("rotor")[0]
    text, truncated, short = (tmp_path / name for name in ("text.wav", "truncated.wav", "short.wav"))
    text.write_text("not audio")
    truncated.write_bytes(clip.read_bytes()[:500])
    for rows, message in [
        ([good, row(text)], "row 1: audio: not a readable recording"),
        ([good, row(truncated)], "row 1: audio: truncated: 500 of"),
        ([row(clip, "press")], "row 0: the model does not know machine press section 0; it knows pump"),
        ([row(clip, section=5)], "row 0: the model does not know machine rotor section 5"),
        *(([good, row(clip, section=section)], "row 1: section") for section in (0.7, "first", [0], [0, 1], 1e400)),
        ([{"machine": "rotor"}], "row 0: audio: Field required"),
        ([{"audio": good["audio"]}], "row 0: no machine"),
        ([{"machine": "rotor", "audio": str(clip)}], ""),
        ([{"machine": "rotor", "audio": "***"}], ""),
    ]:
        status, found = ask(url, *rows)
        assert (status, found["message"].startswith(message)) == (400, True), (message, found)
        assert "Traceback" not in json.dumps(found), found
    samples, rate = soundfile.read(clip)
    soundfile.write(short, samples[: rate // 3], rate)
    told = [answered["warning"] for answered in ask(url, good, row(short))[1]["predictions"]]
    assert told == ["", "unlike the clips of rotor: 0.333 s long, those 1 s"]
