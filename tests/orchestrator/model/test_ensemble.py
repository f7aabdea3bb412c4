"""An ensemble computes what scoring and fusion do of whole tables; recordings are scored, and new machines enrolled."""

import csv
import json
import re
import shutil
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.signal import resample_poly

from branches.audio import read_clip
from branches.data.synthetic import SyntheticClip, render
from fusion.joined import apply_weights
from fusion.scales import SCALES
from orchestrator.ledger.folders import read_finished
from orchestrator.model.enrolment import enrol
from orchestrator.model.ensemble import Ensemble
from orchestrator.model.manifest import Manifest, Member
from orchestrator.model.recordings import score_clips, section_of
from orchestrator.model.reference import Reference
from scoring.banks import score_table
from scoring.decisions import gamma_threshold, thresholds
from scoring.errors import InputError
from tests.commands import tutti_here
from tests.finished import NAME, contributions, manifest_of

pytestmark = pytest.mark.slow
MACHINES = ("rotor", "pump")
DETECTORS = [
    {"name": "mahalanobis"},
    {"name": "knn"},
    {"name": "knn", "k": 2, "density": "ratio"},
    {"name": "band_knn"},
    {"name": "band_knn", "banks": "pooled", "density": {"name": "difference", "weight": "fitted"}, "bands": "maximum"},
    {"name": "mahalanobis", "standardised": True},
]
SOURCES = ["a", "b"]
MEMBER = st.tuples(st.sampled_from(DETECTORS), st.sampled_from(SOURCES), st.floats(0.1, 3))
MEMBERS = st.lists(MEMBER, min_size=1, max_size=4)


def made(drawn, scale, source, target, test, seed):
    """Of one machine members, training clips of two domains, test clips of a hidden one, embeddings, the reference."""
    members = [Member(branch_id=b, name=f"{i}", detector=d, weight=w) for i, (d, b, w) in enumerate(drawn)]
    train, rows = source + target, source + target + test
    columns = {"machine": ["fan"] * rows, "section": [0] * rows, "clip": [f"{i:03d}" for i in range(rows)]}
    columns["split"] = ["train"] * train + ["test"] * test
    columns["domain"] = pa.array(["source"] * source + ["target"] * target + [None] * test, pa.string())
    clips = pa.table({**columns, "condition": pa.nulls(rows, pa.string())})
    rng = np.random.default_rng(seed)
    embeddings = {name: rng.normal(size=(rows, 8, 2)).astype(np.float32) for name in SOURCES}
    manifest = Manifest(scale=scale, members=members, branches={}, normals=[])
    of_normals = {name: X[:train] for name, X in embeddings.items()}
    return members, clips, embeddings, Reference.fit(manifest, clips[:train], of_normals)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MEMBERS, st.sampled_from(SCALES), *map(st.integers, (6, 0, 1, 0), (20, 5, 6, 99)))
def test_it_is_the_fused_table_and_each_score_stands_alone(drawn, scale, source, target, test, seed):
    members, clips, embeddings, reference = made(drawn, scale, source, target, test, seed)
    tables = {m.name: score_table(clips, embeddings[m.source], m.detector, {}) for m in members}
    fused = apply_weights(tables, {m.name: m.weight for m in members}, scale=scale)
    is_test = fused["split"].to_numpy() == "test"
    others = {name: X[source + target :] for name, X in embeddings.items()}
    found = reference.score(others)
    for name in ("score", "calibrated"):
        assert found[name].to_numpy() == pytest.approx(fused[name].to_numpy()[is_test])
    assert reference.train_scores == pytest.approx(fused["score"].to_numpy()[~is_test])
    assert reference.threshold == pytest.approx(thresholds(fused)["fan", 0])
    assert contributions(found).sum(axis=0) == pytest.approx(found["score"].to_numpy())
    alone = [reference.score({name: X[i : i + 1] for name, X in others.items()})["score"][0] for i in range(test)]
    assert found["score"].to_numpy() == pytest.approx([score.as_py() for score in alone])
    reference.threshold = found["score"].to_numpy().max()  # what is just at the threshold is no anomaly
    assert not any(reference.score(others)["anomaly"].to_pylist())


@pytest.fixture(scope="session")
def ensemble(model):
    return Ensemble(model)


@pytest.mark.parametrize("machine", MACHINES)
def test_an_exported_system_with_merged_adapters_says_of_clips_what_the_run_said(run, ensemble, machine):
    fused = run.fused(machine)
    found = ensemble.score(machine, [read_clip(path) for path in run.clips(machine)])
    assert [path.name for path in run.clips(machine)] == fused["clip"].to_pylist()
    for name in ("score", "calibrated"):
        assert found[name].to_numpy() == pytest.approx(fused[name].to_numpy(), abs=1e-5)
    members = ensemble.manifest.members
    named = {branch["branch"]: branch["table"] for branch in run.result["branches"]}
    assert {member.name for member in members} == named.keys()
    assert sum(member.weight for member in members) == pytest.approx(1)
    for member, contribution in zip(members, contributions(found), strict=True):
        table = read_finished(run.out, named[member.name])
        rows = table.filter((pc.field("machine") == machine) & (pc.field("split") == "test"))
        assert contribution == pytest.approx(member.weight * rows["calibrated"].to_numpy(), abs=1e-5)
    assert ensemble.reference(machine) is ensemble.reference(machine)
    networks = [network for network, _ in ensemble._networks]
    assert any(network.spec.strategy.name == "lora" for network in networks)
    assert not any("lora" in name for network in networks for name, _ in network.named_parameters())


def test_a_batch_scores_as_its_clips_one_by_one_and_one_whose_level_is_absurd_is_told(run, ensemble):
    clips = [read_clip(path) for path in run.clips("rotor")]
    clips += [clip[:9000] for clip in clips[:3]] + [np.tile(clips[0], (3, 1))]
    together = ensemble.score("rotor", clips)["score"].to_numpy()
    alone = [ensemble.score("rotor", [clip])["score"].to_pylist() for clip in clips]
    assert together == pytest.approx(np.concatenate(alone), abs=1e-5)
    backwards = ensemble.score("rotor", clips[::-1])["score"].to_numpy()
    assert backwards[::-1] == pytest.approx(together, abs=1e-5)
    with pytest.raises(InputError, match="gives an embedding that is not finite: the level is absurd"):
        ensemble.score("rotor", [np.full((16_000, 1), 1e30, np.float32)])


def score(model, *arguments):
    scored = tutti_here("score", model, *arguments, "--json")
    assert scored.exit_code == 0, scored.output
    return json.loads(scored.stdout)["scores"]


def sound(machine, number, condition="normal", seconds=1.0):
    return render(SyntheticClip(machine, "test", "source", condition, number), seconds)


def write(path, samples, rate=16_000):
    soundfile.write(path, samples, rate, subtype="PCM_16")
    return path


def test_a_data_set_scores_as_in_the_run_folder_by_folder(run, model, tmp_path):
    folders, table, text = [run.data / name / "test" for name in MACHINES], tmp_path / "a.parquet", tmp_path / "a.csv"
    rows = score(model, *folders, "--out", table)
    assert rows == pq.read_table(table).to_pylist() == score(model, *folders, "--out", text)
    expected = [score for machine in MACHINES for score in run.fused(machine)["score"].to_pylist()]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
    submitted = [run.out / f"submission/{NAME}/decision_result_{name}_section_00_test.csv" for name in MACHINES]
    decisions = [line.partition(",")[2] == "1" for path in submitted for line in path.read_text().splitlines()]
    assert [row["anomaly"] for row in rows] == decisions == [row["score"] > row["threshold"] for row in rows]
    for row in rows:
        assert sum(part["contribution"] for part in row["contributions"]) == pytest.approx(row["score"])
        assert {part["branch"] for part in row["contributions"]} == {m["name"] for m in manifest_of(model)["members"]}
    with text.open() as file:
        read = [(row["machine"], row["clip"], float(row["score"])) for row in csv.DictReader(file)]
    assert read == [(row["machine"], row["clip"], pytest.approx(row["score"])) for row in rows]


def test_what_has_changed_is_told_of_anomalies_and_of_one_clip_also_what_each_branch_says(run, model, tmp_path, caplog):
    well, tone = run.data / "rotor" / "test", 0.3 * np.sin(2 * np.pi * 3100 * np.arange(16_000) / 16_000)[:, None]
    loud = write(tmp_path / "loud.wav", sound("rotor", 5) + tone)
    ((changed,), normal) = ([row["changed"] for row in score(model, c, "--machine", "rotor")] for c in (loud, well))
    assert changed.startswith("throughout, around 3.1 kHz, ")
    shown = tutti_here("score", model, loud, well, "--machine", "rotor", "--false-alarms", 0.4).stdout
    rows = [re.split(" {2,}", line) for line in shown.splitlines()[1:]]
    assert rows[0][-2:] == ["True", changed]
    assert {row[-1] for row in rows if "True" not in row} == {"False"}
    assert {row[-1] for row in rows[1:] if "True" in row} <= {*normal, "nothing stands out"}
    shown = tutti_here("score", model, run.clips("rotor", "train")[3]).stdout
    for told in ("False  nothing stands out\n", *(member["name"] for member in manifest_of(model)["members"])):
        assert told in shown
    assert "has the name of a normal clip of the model" in caplog.text


def test_sections_are_taken_from_names_and_an_only_machine_needs_none(run, model, ensemble, monkeypatch, tmp_path):
    names = {"section_02_0003.wav": 2, "section_00_source_test_normal_0001_x.wav": 0, "normal_id_06_00000933.wav": 6}
    for name, section in {**names, "id_04_00000001.wav": 4, "night.wav": 0, "section.wav": 0}.items():
        assert section_of(tmp_path / name) == section
    clip = shutil.copy(run.clips("rotor")[0], tmp_path / "section_07_0001.wav")
    refused = tutti_here("score", model, clip, "--machine", "rotor")
    assert "does not know machine rotor section 7" in refused.output
    assert len(score(model, clip, "--machine", "rotor", "--section", "0")) == 1
    monkeypatch.setattr(ensemble, "only_machine", "rotor")
    assert score_clips(ensemble, [clip], section=0)["machine"].to_pylist() == ["rotor"]


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
    parts = [sound("rotor", 0, "normal", 2.0), sound("rotor", 1, "anomaly", 2.0)]
    return write(tmp_path_factory.mktemp("night") / "night.wav", np.concatenate(parts))


@pytest.mark.parametrize(("rate", "hop", "count", "tolerance"), [(16_000, 0.3, 11, 1e-5), (44_100, 0.41, 8, 1e-3)])
def test_windows_are_as_many_as_fit_and_score_as_clips_do(ensemble, night, tmp_path, rate, hop, count, tolerance):
    """At another rate nearly so: at its edges a window lacks what lies beyond."""
    path = write(tmp_path / "night.wav", resample_poly(read_clip(night), rate, 16_000), rate)
    found, samples = score_clips(ensemble, [path], "rotor", window=1.0, hop=hop), read_clip(path)
    starts = np.arange(count) * hop
    assert found["start"].to_numpy() == pytest.approx(starts)
    clips = ensemble.score("rotor", [samples[round(s * 16_000) : round(s * 16_000) + 16_000] for s in starts])
    for name in ("score", "calibrated", "anomaly"):
        assert found[name].to_numpy() == pytest.approx(clips[name].to_numpy(), abs=tolerance)
    assert found["threshold"].equals(clips["threshold"])
    both = score_clips(ensemble, [path, night], "rotor", window=2.0)  # each from its own beginning
    assert both["start"].to_pylist() == [0, 1, 2] * 2


def test_memory_does_not_grow_with_the_recording(ensemble, tmp_path):
    rng, peaks = np.random.default_rng(0), []
    for seconds in (17, 85):
        path = write(tmp_path / f"{seconds}.wav", rng.normal(scale=0.1, size=seconds * 16_000))
        tracemalloc.start()
        score_clips(ensemble, [path], "rotor", window=1.0, hop=1.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 5e5  # 4.4 MB more, if it were held


@pytest.fixture(scope="module")
def normals(tmp_path_factory):
    folder = tmp_path_factory.mktemp("normals")
    return [write(folder / f"{i}.wav", np.tile(sound("valve", i), (2, 1))[: 14_000 + 1000 * i]) for i in range(6)]


def test_a_few_clips_are_enough_and_other_machines_score_as_before(run, model, ensemble, normals, tmp_path, caplog):
    done = tutti_here("enrol", model, normals[0].parent, "--machine", "valve", "--out", tmp_path / "more")
    assert done.exit_code == 0, done.output
    assert "valve section 0 enrolled; scores above" in done.output
    more = Ensemble(tmp_path / "more")
    assert list(more.known) == [("pump", 0), ("rotor", 0), ("valve", 0)]
    for machine in MACHINES:
        clips = [read_clip(path) for path in run.clips(machine)]
        assert ensemble.score(machine, clips).equals(more.score(machine, clips))
    found = more.score("valve", [sound("valve", i, "anomaly") for i in range(6, 9)] + [sound("valve", 9)])
    valves = found["score"].to_numpy()
    assert np.isfinite([valves, found["calibrated"].to_numpy()]).all()
    assert contributions(found).sum(axis=0) == pytest.approx(valves)
    (other,) = more.score("valve", [sound("rotor", 0)]).to_pylist()
    assert (other["anomaly"], other["score"] > valves[3]) == (True, True)
    enrol(tmp_path / "more", "rotor", normals[3:], tmp_path / "third", section=3)
    assert list(Ensemble(tmp_path / "third").known) == [("pump", 0), ("rotor", 0), ("valve", 0), ("rotor", 3)]
    assert "rough below 20 recordings; there are 6" in caplog.text


def test_a_machine_scores_alike_by_another_name_and_as_new_when_replaced(run, model, ensemble, normals, tmp_path):
    """Training hears all machines, scoring none but the clip's own: so a machine of one domain loses nothing."""
    threshold = enrol(model, "twin", run.clips("pump", "train"), tmp_path / "out")
    clips = [read_clip(path) for path in run.clips("pump")]
    pump, twin = ensemble.score("pump", clips), Ensemble(tmp_path / "out").score("twin", clips)
    for name in ("score", "calibrated", "threshold"):
        assert twin[name].to_numpy() == pytest.approx(pump[name].to_numpy(), abs=1e-5)
    assert twin["threshold"][0].as_py() == threshold
    words = ("enrol", model, normals[0].parent, "--machine")
    for name, arguments in (("fresh", ["valve"]), ("other", ["rotor", "--replace"])):
        done = tutti_here(*words, *arguments, "--out", tmp_path / name)
        assert done.exit_code == 0, done.output
    clips, other = [read_clip(path) for path in run.clips("rotor")], Ensemble(tmp_path / "other")
    assert other.score("rotor", clips).equals(Ensemble(tmp_path / "fresh").score("valve", clips))
    assert other.score("pump", clips).equals(Ensemble(model).score("pump", clips))
    assert other.machines == list(MACHINES)[::-1]
    assert other.warning("rotor", clips[0][:4000]) == "unlike the clips of rotor: 0.25 s long, those 0.875 to 1.19 s"
    assert sorted(path.name for path in (tmp_path / "other").rglob("*.npz")) == ["0.npz", "1.npz"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("score nowhere.wav --machine rotor", "'nowhere.wav' does not exist"),
        ("score {night}", "not in a folder <machine>/test; give --machine, one of pump, rotor"),
        ("score {text} --machine rotor", "text.wav: not a readable recording"),
        ("score {text} --machine rotor --window 1", "text.wav: not a readable recording"),
        ("score {odd} --machine rotor --window 1 --hop 1", "odd.wav at 2.0 s: a sample is not a finite number"),
        ("score {empty} --machine rotor", "empty: no recordings in it"),
        ("score {night} --machine press", "does not know machine press section 0; it knows pump section 0, rotor"),
        ("score {night} --machine rotor --out scores.txt", "scores.txt: give a file that ends in .csv or"),
        ("score {night} --machine rotor --out nowhere/scores.csv", "there is no folder nowhere"),
        ("score {night} --machine rotor --hop 1", "--hop belongs to --window"),
        ("score {night} --machine rotor --window 4.5", "night.wav: shorter than one window of 4.5 s"),
        ("score {night} --machine rotor --window 0.1", "a window has at least 0.175 s"),
        ("score {night} --machine rotor --window 1 --hop 0.00001", "a hop at least 0.01 s and at most a window"),
        ("score {night} --machine rotor --device cuda", "torch finds no GPU here"),
        ("enrol {0} {1} {2} --machine rotor --out {out}", "the model knows machine rotor section 0 already"),
        ("enrol {0} {1} {2} --machine rotor --section 1 --replace --out {out}", "not know machine rotor section 1"),
        ("enrol {0} {1} --machine valve --out {out}", "2 training clips; scoring needs at least 3"),
        ("enrol {0} {1} {2} {0} --machine valve --out {out}", "0.wav have the same file name"),
        ("enrol {0} {1} {silent} --machine valve --out {out}", "silent.wav: nothing is heard in it; leave it out"),
        ("enrol {0} {1} {text} --machine valve --out {out}", "text.wav: not a readable recording"),
        ("enrol {alike} --machine valve --out {out}", "valve cannot be judged by these recordings"),
        ("enrol {0} {1} {2} --machine valve --out {empty}", "empty: exists already"),
    ],
)
def test_mistakes_are_named_and_leave_nothing(model, night, normals, tmp_path, arguments, message):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    paths = {name: tmp_path / name for name in ("text.wav", "silent.wav", "odd.wav", "empty", "alike")}
    paths["text.wav"].write_text("not audio")
    soundfile.write(paths["silent.wav"], np.zeros(16_000), 16_000)
    samples = np.full(48_000, 0.1, np.float32)
    samples[40_000] = np.nan
    soundfile.write(paths["odd.wav"], samples, 16_000, subtype="FLOAT")
    for folder in (paths["empty"], paths["alike"]):
        folder.mkdir()
    for name in "abc":
        shutil.copy(normals[0], paths["alike"] / f"{name}.wav")
    places = {path.stem: path for path in (*paths.values(), night, tmp_path / "out")}
    refused = tutti_here(*(word.format(*normals, **places) for word in arguments.replace(" ", f" {model} ", 1).split()))
    assert refused.exit_code == 2
    assert message in refused.output
    assert {*tmp_path.iterdir()} == {*paths.values()}
