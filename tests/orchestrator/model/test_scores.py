"""An exported system says of clips what the run said."""

import csv
import json
import shutil

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import soundfile

from branches.audio import read_clip
from orchestrator.ledger.folders import read_finished
from orchestrator.model.ensemble import Ensemble
from orchestrator.model.recordings import score_clips, section_of
from scoring.decisions import gamma_threshold
from scoring.errors import InputError
from tests.commands import tutti_here
from tests.finished import NAME, contributions, manifest_of

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("machine", ["rotor", "pump"])
def test_scores_and_decisions_are_those_of_the_run(run, ensemble, machine):
    fused = run.fused(machine)
    found = ensemble.score(machine, [read_clip(path) for path in run.clips(machine)])
    assert [path.name for path in run.clips(machine)] == fused["clip"].to_pylist()
    for name in ("score", "calibrated"):
        assert found[name].to_numpy() == pytest.approx(fused[name].to_numpy(), abs=1e-5)
    submitted = run.out / "submission" / NAME / f"decision_result_{machine}_section_00_test.csv"
    decisions = [int(line.partition(",")[2]) for line in submitted.read_text().splitlines()]
    assert [int(anomaly) for anomaly in found["anomaly"].to_pylist()] == decisions


def test_contributions_are_weighted_calibrated_scores_and_add_up(run, ensemble):
    found = ensemble.score("rotor", [read_clip(path) for path in run.clips("rotor")])
    weights = np.array([member.weight for member in ensemble.manifest.members])
    assert len(weights) == 10
    assert weights.sum() == pytest.approx(1)
    parts = contributions(found)
    assert parts.sum(axis=0) == pytest.approx(found["score"].to_numpy())
    for member, weight, contribution in zip(ensemble.manifest.members, weights, parts, strict=True):
        table = read_finished(run.out, f"{member.branch_id}/{member.name.rpartition(' ')[2]}")
        rows = table.filter((pc.field("machine") == "rotor") & (pc.field("split") == "test"))
        assert contribution == pytest.approx(weight * rows["calibrated"].to_numpy(), abs=1e-5)


def test_a_batch_scores_as_its_clips_one_by_one(run, ensemble):
    """Also where clips of other lengths, which are padded together, are in the batch."""
    clips = [read_clip(path) for path in run.clips("rotor")]
    clips += [clip[:9000] for clip in clips[:3]] + [np.tile(clips[0], (3, 1))]
    together = ensemble.score("rotor", clips)["score"].to_numpy()
    alone = [ensemble.score("rotor", [clip])["score"].to_pylist() for clip in clips]
    assert together == pytest.approx(np.concatenate(alone), abs=1e-5)
    backwards = ensemble.score("rotor", clips[::-1])["score"].to_numpy()
    assert backwards[::-1] == pytest.approx(together, abs=1e-5)


def test_unknown_machine_and_section(ensemble, run):
    clip = [read_clip(run.clips("rotor")[0])]
    with pytest.raises(InputError, match="does not know machine press section 0; it knows pump section 0, rotor"):
        ensemble.score("press", clip)
    with pytest.raises(InputError, match="does not know machine rotor section 3"):
        ensemble.score("rotor", clip, section=3)


def test_the_command_scores_a_data_set_folder_by_folder(run, model, tmp_path):
    folders = [run.data / machine / "test" for machine in ("rotor", "pump")]
    table, text = tmp_path / "scores.parquet", tmp_path / "scores.csv"
    as_json = tutti_here("score", model, *folders, "--out", table, "--json")
    assert as_json.exit_code == 0, as_json.output
    rows = json.loads(as_json.stdout)["scores"]
    assert rows == pq.read_table(table).to_pylist()
    expected = [score for machine in ("rotor", "pump") for score in run.fused(machine)["score"].to_pylist()]
    assert [row["score"] for row in rows] == pytest.approx(expected, abs=1e-5)
    for row in rows:
        assert row["anomaly"] == (row["score"] > row["threshold"])
        assert sum(part["contribution"] for part in row["contributions"]) == pytest.approx(row["score"])
        assert {part["branch"] for part in row["contributions"]} == {m["name"] for m in manifest_of(model)["members"]}
    assert tutti_here("score", model, *folders, "--out", text).exit_code == 0
    with text.open() as file:
        read = list(csv.DictReader(file))
    assert [(row["machine"], row["clip"], float(row["score"])) for row in read] == [
        (row["machine"], row["clip"], pytest.approx(row["score"])) for row in rows
    ]


def test_one_clip_is_shown_with_what_each_branch_says(run, model, tmp_path):
    clip = tmp_path / "my fan.flac"
    samples, rate = soundfile.read(run.clips("rotor")[0])
    soundfile.write(clip, samples, rate)
    shown = tutti_here("score", model, clip, "--machine", "rotor")
    assert shown.exit_code == 0, shown.output
    for member in manifest_of(model)["members"]:
        assert member["name"] in shown.output
    assert f"{run.fused('rotor')['score'][0].as_py():.2f}" in shown.output


def test_sections_are_taken_from_names(run, model, tmp_path):
    names = {"section_02_0003.wav": 2, "section_00_source_test_normal_0001_x.wav": 0, "normal_id_06_00000933.wav": 6}
    for name, section in {**names, "id_04_00000001.wav": 4, "night.wav": 0, "section.wav": 0}.items():
        assert section_of(tmp_path / name) == section
    clip = shutil.copy(run.clips("rotor")[0], tmp_path / "section_07_0001.wav")
    refused = tutti_here("score", model, clip, "--machine", "rotor")
    assert "does not know machine rotor section 7" in refused.output
    assert tutti_here("score", model, clip, "--machine", "rotor", "--section", "0").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.wav", "--machine", "rotor"], "'nowhere.wav' does not exist"),
        (["{clip}"], "not in a folder <machine>/test; give --machine"),
        (["{text}", "--machine", "rotor"], "text.wav: not a readable recording"),
        (["{clip}", "--machine", "press"], "does not know machine press section 0"),
        (["{clip}", "--machine", "rotor", "--out", "scores.txt"], "scores.txt: give a file that ends in .csv or"),
        (["{clip}", "--machine", "rotor", "--out", "nowhere/scores.csv"], "there is no folder nowhere"),
        (["{clip}", "--machine", "rotor", "--hop", "1"], "--hop belongs to --window"),
        (["{folder}", "--machine", "rotor"], "no .wav or .flac in it"),
    ],
)
def test_mistakes_are_named(run, model, tmp_path, arguments, message):
    clip = shutil.copy(run.clips("rotor")[0], tmp_path / "clip.wav")
    (tmp_path / "text.wav").write_text("not audio")
    (tmp_path / "empty").mkdir()
    places = {"clip": clip, "text": tmp_path / "text.wav", "folder": tmp_path / "empty"}
    refused = tutti_here("score", model, *(a.format(**places) for a in arguments))
    assert refused.exit_code == 2
    assert message in refused.output


def test_a_gpu_that_is_not_there_is_named(run, model):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is one")
    refused = tutti_here("score", model, run.clips("rotor")[0], "--device", "cuda")
    assert refused.exit_code == 2
    assert "torch finds no GPU here" in refused.output


def test_the_rate_of_false_alarms_is_the_users(run, model, tmp_path):
    """Chosen when the model is made, or when it scores."""
    clip, few = run.clips("rotor")[0], ["--false-alarms", 0.01]
    made = tutti_here("export", run.out, "--out", tmp_path / "m", *few)
    assert made.exit_code == 0, made.stderr
    asked = [(tmp_path / "m", clip), (model, clip, *few), (model, clip)]
    rows = [json.loads(tutti_here("score", *arguments, "--json").stdout)["scores"] for arguments in asked]
    chosen, same, default = (row["threshold"] for (row,) in rows)
    assert chosen == same == gamma_threshold(Ensemble(model).reference("rotor").train_scores, 0.99)
    assert default < chosen


def test_a_clip_that_the_model_knows_is_told(run, model, caplog):
    assert tutti_here("score", model, next((run.data / "rotor" / "train").iterdir())).exit_code == 0
    assert "called like normal clips of the model" in caplog.text


def test_a_model_of_one_machine_needs_no_name(ensemble, run, monkeypatch, tmp_path):
    (tmp_path / "x.wav").write_bytes(run.clips("rotor")[0].read_bytes())
    with pytest.raises(InputError, match="give --machine, one of pump, rotor"):
        score_clips(ensemble, [tmp_path / "x.wav"], None)
    monkeypatch.setattr(ensemble, "only_machine", "rotor")
    assert score_clips(ensemble, [tmp_path / "x.wav"], None)["machine"].to_pylist() == ["rotor"]
