"""A new machine from a few of its normal clips, without training."""

import shutil

import numpy as np
import pytest
import soundfile

from branches.audio import read_clip
from branches.data.synthetic import SyntheticClip, render
from orchestrator.model.enrolment import enrol
from orchestrator.model.ensemble import Ensemble
from tests.commands import tutti_here
from tests.finished import contributions, manifest_of

pytestmark = pytest.mark.slow


def valve(number, condition="normal"):
    """A clip of a machine that the run has never heard: (samples, 2)."""
    return render(SyntheticClip("valve", "test", "source", condition, number), 1.0)


@pytest.fixture(scope="module")
def normals(tmp_path_factory):
    """A folder with six normal recordings of a valve, shorter and longer than the model's clips."""
    folder = tmp_path_factory.mktemp("normals")
    for i in range(6):
        samples = np.tile(valve(i), (2, 1))[: 14_000 + 1000 * i]
        soundfile.write(folder / f"{i}.wav", samples, 16_000, subtype="PCM_16")
    return folder


@pytest.fixture(scope="module")
def enrolled(model, normals, tmp_path_factory):
    """The model that knows the valve, too."""
    out = tmp_path_factory.mktemp("enrolled") / "model"
    done = tutti_here("enrol", model, normals, "--machine", "valve", "--out", out)
    assert done.exit_code == 0, done.output
    assert "valve section 0 enrolled; scores above" in done.output
    return out


def test_a_handful_of_clips_is_enough_and_other_machines_score_as_before_bit_for_bit(run, ensemble, enrolled):
    more = Ensemble(enrolled)
    assert list(more.rows) == [("pump", 0), ("rotor", 0), ("valve", 0)]
    for machine in ("rotor", "pump"):
        clips = [read_clip(path) for path in run.clips(machine)]
        assert ensemble.score(machine, clips).equals(more.score(machine, clips))
    found = more.score("valve", [valve(i, "anomaly") for i in range(6, 9)] + [valve(9)])
    score = found["score"].to_numpy()
    assert np.isfinite([score, found["calibrated"].to_numpy()]).all()
    assert contributions(found).sum(axis=0) == pytest.approx(score)
    other_machine = more.score("valve", [render(SyntheticClip("rotor", "test", "source", "normal", 0), 1.0)])
    assert other_machine["score"][0].as_py() > score[3]
    assert other_machine["anomaly"][0].as_py()


def test_the_clips_of_a_machine_under_another_name_give_its_scores(run, model, ensemble, tmp_path):
    """Training hears all machines, scoring none but the clip's own: so a machine of one domain loses nothing."""
    threshold = enrol(model, "twin", run.clips("pump", "train"), tmp_path / "out")
    clips = [read_clip(path) for path in run.clips("pump")]
    pump, twin = ensemble.score("pump", clips), Ensemble(tmp_path / "out").score("twin", clips)
    for name in ("score", "calibrated", "threshold"):
        assert twin[name].to_numpy() == pytest.approx(pump[name].to_numpy(), abs=1e-5)
    assert twin["threshold"][0].as_py() == threshold


def test_a_section_of_a_known_machine_and_a_model_that_was_enrolled_before(enrolled, normals, tmp_path, caplog):
    enrol(enrolled, "rotor", sorted(normals.iterdir()), tmp_path / "third", section=3)
    assert list(Ensemble(tmp_path / "third").rows) == [("pump", 0), ("rotor", 0), ("rotor", 3), ("valve", 0)]
    assert "6 recordings tell little of how scores vary" in caplog.text
    formats = [manifest_of(folder)["formats"]["rotor"]["seconds"] for folder in (enrolled, tmp_path / "third")]
    assert formats == [[1.0, 1.0], [14 / 16, 19 / 16]]


@pytest.mark.parametrize(
    ("clips", "machine", "message"),
    [
        ("012345", "rotor", "the model knows machine rotor section 0 already"),
        ("01", "valve", "2 training clips; scoring needs at least 3"),
        ("0120", "valve", "two recordings have the same file name"),
        ("01x", "valve", "x.wav: not a readable recording"),
        ("cde", "valve", "valve cannot be judged by these recordings"),
    ],
)
def test_what_cannot_be_enrolled_is_named_and_leaves_nothing(model, normals, tmp_path, clips, machine, message):
    folder = shutil.copytree(normals, tmp_path / "clips")
    (folder / "x.wav").write_bytes(b"RIFF, or so")
    for name in "cde":
        shutil.copy(folder / "0.wav", folder / f"{name}.wav")
    paths = [folder / f"{name}.wav" for name in clips]
    refused = tutti_here("enrol", model, *paths, "--machine", machine, "--out", tmp_path / "out")
    assert refused.exit_code == 2
    assert message in refused.output
    refused = tutti_here("enrol", model, normals, "--machine", "gear", "--out", folder)
    assert f"{folder}: exists already" in refused.output
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]
