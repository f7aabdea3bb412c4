"""A long recording, window by window."""

import csv
import json
import shutil
import tracemalloc

import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from branches.audio import read_clip
from branches.data.synthetic import SyntheticClip, render
from orchestrator.model.recordings import score_clips
from scoring.errors import InputError
from tests.commands import tutti_here

pytestmark = pytest.mark.slow


def write(path, samples, rate=16_000):
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """Four seconds of a rotor, well and then ill, on two channels."""
    parts = [render(SyntheticClip("rotor", "test", "source", c, i), 2.0) for i, c in enumerate(("normal", "anomaly"))]
    return write(tmp_path_factory.mktemp("night") / "night.wav", np.concatenate(parts))


def test_windows_score_as_the_same_excerpts_do_as_clips(ensemble, night):
    found = score_clips(ensemble, [night], "rotor", window=1.0, hop=0.3)
    samples = read_clip(night)
    starts = np.arange(11) * 0.3
    assert found["start"].to_numpy() == pytest.approx(starts)
    excerpts = [samples[round(s * 16_000) : round(s * 16_000) + 16_000] for s in starts]
    clips = ensemble.score("rotor", excerpts)
    for name in ("score", "calibrated", "anomaly"):
        assert found[name].to_numpy() == pytest.approx(clips[name].to_numpy(), abs=1e-5)
    assert found["threshold"].equals(clips["threshold"])


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(8000, 30000), st.sampled_from([8000, 11025, 16000]), st.floats(0.2, 0.6), st.floats(0.15, 1.0)
)  # samples, Hz, seconds, share of a window
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


def test_another_rate_is_resampled_by_the_window(ensemble, tmp_path):
    """At its edges a window lacks what lies beyond, so scores are near those of the whole, not equal to them."""
    rate = 44_100
    rng, t = np.random.default_rng(0), np.arange(4 * rate) / rate
    path = write(tmp_path / "fast.wav", 0.1 * np.sin(2 * np.pi * 440 * t) + 0.02 * rng.normal(size=len(t)), rate)
    found = score_clips(ensemble, [path], "rotor", window=1.0)["calibrated"].to_numpy()
    whole = read_clip(path)
    excerpts = [whole[i : i + 16_000] for i in range(0, 48_001, 8000)]
    expected = ensemble.score("rotor", excerpts)["calibrated"].to_numpy()
    assert found == pytest.approx(expected, abs=1e-3)


def test_memory_does_not_grow_with_the_recording(ensemble, tmp_path):
    rng = np.random.default_rng(0)
    peaks = []
    for seconds in (16, 160):
        path = write(tmp_path / f"{seconds}.wav", rng.normal(scale=0.1, size=seconds * 16_000))
        tracemalloc.start()
        score_clips(ensemble, [path], "rotor", window=1.0, hop=1.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1e6  # 9.2 MB more, if it were held


def test_the_command_scores_several_recordings(model, night, tmp_path):
    """Also those in a folder, each from its own beginning."""
    shutil.copy(night, tmp_path / "again.wav")
    options = ["--machine", "rotor", "--window", "1", "--json", "--out", tmp_path / "night.csv"]
    scored = tutti_here("score", model, night, tmp_path, *options)
    assert scored.exit_code == 0, scored.output
    rows = json.loads(scored.stdout)["scores"]
    places = [(row["clip"], row["start"]) for row in rows]
    assert places == [(clip, 0.5 * i) for clip in ("night.wav", "again.wav") for i in range(7)]
    with (tmp_path / "night.csv").open() as file:
        assert [float(row["score"]) for row in csv.DictReader(file)] == [row["score"] for row in rows]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--window", "4.5"], "night.wav: shorter than one window of 4.5 s"),
        (["--window", "0.1"], "a window has at least 0.175 s"),
        (["--window", "1", "--hop", "2"], "a hop at least 0.01 s and at most a window"),
        (["--window", "1", "--hop", "0.00001"], "a hop at least 0.01 s and at most a window"),
        (["--window", "1", "--section", "4"], "does not know machine rotor section 4"),
    ],
)
def test_mistakes_are_named(model, night, options, message):
    refused = tutti_here("score", model, night, "--machine", "rotor", *options)
    assert refused.exit_code == 2
    assert message in refused.output


def test_what_is_no_recording_or_not_finite_is_named(ensemble, tmp_path):
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(InputError, match=r"text\.wav: not a readable recording"):
        score_clips(ensemble, [tmp_path / "text.wav"], "rotor", window=1.0)
    samples = np.full(48_000, 0.1, np.float32)
    samples[40_000] = np.nan
    soundfile.write(tmp_path / "odd.wav", samples, 16_000, subtype="FLOAT")
    with pytest.raises(InputError, match=r"odd\.wav at 2\.0 s: a sample is not a finite number"):
        score_clips(ensemble, [tmp_path / "odd.wav"], "rotor", window=1.0, hop=1.0)
