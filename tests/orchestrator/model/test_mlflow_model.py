"""The model behind MLflow's own server, asked as a client asks it."""

import base64
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import soundfile

from tests.commands import free_port
from tests.test_readme import answer

pytestmark = pytest.mark.slow
MLFLOW = Path(sys.executable).with_name("mlflow")


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    """Of a server on the loopback, which runs the code that came with the model."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment["PATH"] = f"{MLFLOW.parent}{os.pathsep}{environment['PATH']}"  # as in an environment that is active
    command = [str(MLFLOW), "models", "serve", "--model-uri", str(model), "--port", str(port), "--env-manager", "local"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        answer(f"http://127.0.0.1:{port}/ping", seconds=120)
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=30)


def ask(url, *rows):
    """Status and answer of a request with these rows."""
    return post(url, json.dumps({"dataframe_records": rows}).encode())


def post(url, body):
    request = urllib.request.Request(f"{url}/invocations", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def row(path, machine, **others):
    return {"machine": machine, "audio": base64.b64encode(path.read_bytes()).decode(), **others}


def test_scores_are_those_of_the_run(run, url):
    for machine in ("rotor", "pump"):
        fused = run.fused(machine)
        status, found = ask(url, *(row(path, machine) for path in run.clips(machine)))
        assert status == 200, found
        for expected, answered in zip(fused.to_pylist(), found["predictions"], strict=True):
            assert answered["score"] == pytest.approx(expected["score"], abs=1e-5)
            assert answered["calibrated"] == pytest.approx(expected["calibrated"], abs=1e-5)
            assert answered["anomaly"] is (answered["score"] > answered["threshold"])
            assert sum(json.loads(answered["contributions"]).values()) == pytest.approx(answered["score"])


def test_a_section_may_be_null_or_absent_in_some_rows(run, url):
    clip = run.clips("rotor")[0]
    _, expected = ask(url, row(clip, "rotor"))
    for section in (None, 0, 0.0, "0"):
        status, answer = ask(url, row(clip, "rotor", section=section), row(clip, "rotor"))
        assert status == 200, answer
        assert answer["predictions"] == 2 * expected["predictions"]
    for section in (0.7, "first", [0], [0, 1], 1e400):
        status, answer = ask(url, row(clip, "rotor"), row(clip, "rotor", section=section))
        assert status == 400
        assert answer["message"].startswith("row 1: section")


def test_every_form_of_request_is_understood_and_none_is_repeated_in_an_error(run, url):
    clip = run.clips("rotor")[0]
    _, expected = ask(url, row(clip, "rotor"))
    audio = row(clip, "rotor")["audio"]
    for machine in ("rotor", "nowhere"):
        for form in (
            {"dataframe_split": {"columns": ["machine", "audio"], "data": [[machine, audio]]}},
            {"instances": [{"machine": machine, "audio": audio}]},
            {"inputs": {"machine": [machine], "audio": [audio]}},
            {"inputs": {"machine": [machine], "audio": [{"b64": audio}]}},
        ):
            status, answer = post(url, json.dumps(form).encode())
            if machine == "rotor":
                assert (status, answer) == (200, expected)
            else:
                assert status == 400
                assert answer["message"].startswith("row 0: the model does not know machine nowhere")
                assert len(json.dumps(answer)) < 1_000


def test_a_recording_unlike_the_machines_clips_has_a_warning(run, url, tmp_path):
    samples, rate = soundfile.read(run.clips("rotor")[0])
    soundfile.write(tmp_path / "short.wav", samples[: rate // 3], rate)
    _, answer = ask(url, row(run.clips("rotor")[0], "rotor"), row(tmp_path / "short.wav", "rotor"))
    usual, short = (r["warning"] for r in answer["predictions"])
    assert usual == ""
    assert short == "unlike the clips of rotor: 0.333 s long, those 1 s"


def test_bad_requests_are_answered_and_the_server_lives_on(run, url, tmp_path):
    clip = run.clips("rotor")[0]
    good = row(clip, "rotor")
    text = {"machine": "rotor", "audio": base64.b64encode(b"not audio").decode()}
    short = {"machine": "rotor", "audio": base64.b64encode(clip.read_bytes()[:500]).decode()}
    for rows, message in [
        ([good, text], "row 1: audio: not a readable recording"),
        ([good, short], "row 1: audio: truncated: 500 of"),
        ([row(clip, "press")], "row 0: the model does not know machine press section 0; it knows pump"),
        ([row(clip, "rotor", section=5)], "row 0: the model does not know machine rotor section 5"),
        ([{"machine": "rotor"}], "row 0: audio: Field required"),
        ([{"audio": good["audio"]}], "row 0: no machine"),
        ([{"machine": "rotor", "audio": str(clip)}], ""),
        ([{"machine": "rotor", "audio": "***"}], ""),
    ]:
        status, found = ask(url, *rows)
        assert status == 400, (message, found)
        assert message in found["message"]
        assert "Traceback" not in json.dumps(found), found
    assert post(url, b"{")[0] == 400
    assert ask(url, good)[0] == 200
