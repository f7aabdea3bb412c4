"""`tutti score`: recordings, folders of them, and long ones window by window."""

import csv
import json
import shutil
import tracemalloc

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from branches.audio import read_clip
from branches.data.synthetic import SyntheticClip, render
from orchestrator.model.ensemble import Ensemble
from orchestrator.model.recordings import score_clips, section_of
from scoring.decisions import gamma_threshold
from scoring.errors import InputError
from tests.commands import tutti_here
from tests.finished import NAME, manifest_of

pytestmark = pytest.mark.slow


def score(model, *arguments):
    """The rows that the command prints."""
    scored = tutti_here("score", model, *arguments, "--json")
    assert scored.exit_code == 0, scored.output
    return json.loads(scored.stdout)["scores"]


def write(path, samples, rate=16_000):
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def test_a_data_set_scores_as_in_the_run_folder_by_folder(run, model, tmp_path):
    folders = [run.data / machine / "test" for machine in ("rotor", "pump")]
    table, text = tmp_path / "scores.parquet", tmp_path / "scores.csv"
    rows = score(model, *folders, "--out", table)
    assert rows == pq.read_table(table).to_pylist()
    expected = [score for machine in ("rotor", "pump") for score in run.fused(machine)["score"].to_pylist()]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
    decisions = []
    for machine in ("rotor", "pump"):
        submitted = run.out / "submission" / NAME / f"decision_result_{machine}_section_00_test.csv"
        decisions += [line.partition(",")[2] == "1" for line in submitted.read_text().splitlines()]
    assert [row["anomaly"] for row in rows] == decisions == [row["score"] > row["threshold"] for row in rows]
    for row in rows:
        assert sum(part["contribution"] for part in row["contributions"]) == pytest.approx(row["score"])
        assert {part["branch"] for part in row["contributions"]} == {m["name"] for m in manifest_of(model)["members"]}
    assert tutti_here("score", model, *folders, "--out", text).exit_code == 0
    with text.open() as file:
        read = list(csv.DictReader(file))
    assert [(row["machine"], row["clip"], float(row["score"])) for row in read] == [
        (row["machine"], row["clip"], pytest.approx(row["score"])) for row in rows
    ]


def test_one_clip_is_shown_with_what_each_branch_says_and_told_if_it_is_one_of_the_models_own(run, model, caplog):
    clip = run.clips("rotor", "train")[0]
    shown = tutti_here("score", model, clip)
    assert shown.exit_code == 0, shown.output
    assert all(member["name"] in shown.output for member in manifest_of(model)["members"])
    assert "called like normal clips of the model" in caplog.text


def test_sections_are_taken_from_names_unless_one_is_given(run, model, tmp_path):
    names = {"section_02_0003.wav": 2, "section_00_source_test_normal_0001_x.wav": 0, "normal_id_06_00000933.wav": 6}
    for name, section in {**names, "id_04_00000001.wav": 4, "night.wav": 0, "section.wav": 0}.items():
        assert section_of(tmp_path / name) == section
    clip = shutil.copy(run.clips("rotor")[0], tmp_path / "section_07_0001.wav")
    refused = tutti_here("score", model, clip, "--machine", "rotor")
    assert "does not know machine rotor section 7" in refused.output
    assert len(score(model, clip, "--machine", "rotor", "--section", "0")) == 1


def test_a_model_of_one_machine_needs_no_name(ensemble, run, monkeypatch, tmp_path):
    (tmp_path / "x.wav").write_bytes(run.clips("rotor")[0].read_bytes())
    with pytest.raises(InputError, match="give --machine, one of pump, rotor"):
        score_clips(ensemble, [tmp_path / "x.wav"], None)
    monkeypatch.setattr(ensemble, "only_machine", "rotor")
    assert score_clips(ensemble, [tmp_path / "x.wav"], None)["machine"].to_pylist() == ["rotor"]


def test_the_rate_of_false_alarms_is_chosen_when_the_model_is_made_or_scores(run, model, tmp_path):
    clip, few = run.clips("rotor")[0], ["--false-alarms", 0.01]
    made = tutti_here("export", run.out, "--out", tmp_path / "m", *few)
    assert made.exit_code == 0, made.stderr
    asked = [(tmp_path / "m", clip), (model, clip, *few), (model, clip)]
    chosen, same, default = (row["threshold"] for arguments in asked for row in score(*arguments))
    assert chosen == same == gamma_threshold(Ensemble(model).reference("rotor").train_scores, 0.99)
    assert default < chosen


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Four seconds of a rotor, well and then ill, on two channels."""
    parts = [render(SyntheticClip("rotor", "test", "source", c, i), 2.0) for i, c in enumerate(("normal", "anomaly"))]
    return write(tmp_path_factory.mktemp("night") / "night.wav", np.concatenate(parts))


@pytest.mark.parametrize(("rate", "tolerance"), [(16_000, 1e-5), (44_100, 1e-3)])
def test_windows_score_as_the_same_excerpts_do_as_clips(ensemble, night, tmp_path, rate, tolerance):
    """At another rate nearly so: at its edges a window lacks what lies beyond."""
    path = write(tmp_path / "night.wav", resample_poly(read_clip(night), rate, 16_000), rate)
    found, samples = score_clips(ensemble, [path], "rotor", window=1.0, hop=0.3), read_clip(path)
    starts = np.arange(11) * 0.3
    assert found["start"].to_numpy() == pytest.approx(starts)
    excerpts = [samples[round(s * 16_000) : round(s * 16_000) + 16_000] for s in starts]
    clips = ensemble.score("rotor", excerpts)
    for name in ("score", "calibrated", "anomaly"):
        assert found[name].to_numpy() == pytest.approx(clips[name].to_numpy(), abs=tolerance)
    assert found["threshold"].equals(clips["threshold"])


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(8000, 30000), st.sampled_from([8000, 11025, 16000]), st.floats(0.2, 0.6), st.floats(0.15, 1.0)
)  # samples, Hz, seconds, share of a window
@example(9600, 16_000, 0.6, 1.0)
def test_windows_are_as_many_as_fit(ensemble, tmp_path, samples, rate, window, share):
    hop = window * share
    tone = 0.1 * np.sin(np.arange(samples) * 0.3)
    path = write(tmp_path / "any.wav", tone + 0.01 * np.random.default_rng(0).normal(size=samples), rate)
    length, step = round(window * rate), round(hop * rate)
    if samples < length:
        with pytest.raises(InputError, match=r"any\.wav: shorter than one window"):
            score_clips(ensemble, [path], "pump", window=window, hop=hop)
        return
    start = score_clips(ensemble, [path], "pump", window=window, hop=hop)["start"].to_numpy()
    assert start == pytest.approx(np.arange((samples - length) // step + 1) * step / rate)


def test_memory_does_not_grow_with_the_recording(ensemble, tmp_path):
    rng = np.random.default_rng(0)
    peaks = []
    for seconds in (17, 85):
        path = write(tmp_path / f"{seconds}.wav", rng.normal(scale=0.1, size=seconds * 16_000))
        tracemalloc.start()
        score_clips(ensemble, [path], "rotor", window=1.0, hop=1.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 5e5  # 4.4 MB more, if it were held


def test_several_recordings_are_scored_each_from_its_own_beginning(model, night, tmp_path):
    shutil.copy(night, tmp_path / "again.wav")
    rows = score(model, night, tmp_path, "--machine", "rotor", "--window", "1", "--out", tmp_path / "night.csv")
    places = [(row["clip"], row["start"]) for row in rows]
    assert places == [(clip, 0.5 * i) for clip in ("night.wav", "again.wav") for i in range(7)]
    with (tmp_path / "night.csv").open() as file:
        assert [float(row["score"]) for row in csv.DictReader(file)] == [row["score"] for row in rows]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("nowhere.wav --machine rotor", "'nowhere.wav' does not exist"),
        ("{night}", "not in a folder <machine>/test; give --machine"),
        ("{text} --machine rotor", "text.wav: not a readable recording"),
        ("{text} --machine rotor --window 1", "text.wav: not a readable recording"),
        ("{odd} --machine rotor --window 1 --hop 1", "odd.wav at 2.0 s: a sample is not a finite number"),
        ("{empty} --machine rotor", "no .wav or .flac in it"),
        ("{night} --machine press", "does not know machine press section 0; it knows pump section 0, rotor"),
        ("{night} --machine rotor --window 1 --section 4", "does not know machine rotor section 4"),
        ("{night} --machine rotor --out scores.txt", "scores.txt: give a file that ends in .csv or"),
        ("{night} --machine rotor --out nowhere/scores.csv", "there is no folder nowhere"),
        ("{night} --machine rotor --hop 1", "--hop belongs to --window"),
        ("{night} --machine rotor --window 4.5", "night.wav: shorter than one window of 4.5 s"),
        ("{night} --machine rotor --window 0.1", "a window has at least 0.175 s"),
        ("{night} --machine rotor --window 1 --hop 2", "a hop at least 0.01 s and at most a window"),
        ("{night} --machine rotor --window 1 --hop 0.00001", "a hop at least 0.01 s and at most a window"),
        ("{night} --machine rotor --device cuda", "torch finds no GPU here"),
    ],
)
def test_mistakes_are_named(model, night, tmp_path, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "empty").mkdir()
    samples = np.full(48_000, 0.1, np.float32)
    samples[40_000] = np.nan
    soundfile.write(tmp_path / "odd.wav", samples, 16_000, subtype="FLOAT")
    paths = {name: tmp_path / f"{name}.wav" for name in ("text", "odd")}
    words = [word.format(**paths, night=night, empty=tmp_path / "empty") for word in arguments.split(" ")]
    refused = tutti_here("score", model, *words)
    assert refused.exit_code == 2
    assert message in refused.output
