"""Before a training: what it costs, and what cannot work."""

import shutil
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest

from branches.audio.cache import AudioCache
from branches.beats import load_beats, save_beats
from branches.checkpoint_files import SMALL, SMALL_SHA256
from branches.data.dataset import noise_index, read_index
from branches.spec import BackboneSpec, BranchSpec
from orchestrator.cost import core_gflops, duration, petaflop
from orchestrator.plan import make_plan
from orchestrator.preflight import check_branches, check_lengths, notes_on, resolve_file, with_resolved_files
from orchestrator.system import SystemSpec, load_system
from scoring.errors import InputError
from tests.commands import tutti_here


@pytest.fixture
def checkpoint(tmp_path):
    save_beats(load_beats("tiny"), tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def branches(branch, **settings):
    configuration = {"branch": {"objective": "softmax", **branch}, **settings}
    system = SystemSpec.model_validate({"name": "x", "subsystems": {"a": {"b": configuration}}})
    return make_plan([system], None).branches


def audio(*seconds, channels=2):
    """Clips of these lengths, of which nothing is heard."""
    start = np.cumsum([0, *(int(16_000 * s) * channels for s in seconds)])
    return AudioCache(np.empty(0, np.int16), start, np.full(len(seconds), channels))


def test_a_checkpoint_counts_by_its_content_and_may_be_given_by_its_uri(checkpoint, tmp_path):
    first = with_resolved_files(load_system("s1", backbone=str(checkpoint)))
    moved = checkpoint.rename(tmp_path / "100 % mine.pt")
    second = with_resolved_files(load_system("s1", backbone=str(moved)))
    assert first != second
    ids = {make_plan([system], None).branches[0].branch_id for system in (first, second)}
    assert len(ids) == 1
    assert with_resolved_files(load_system("s1", backbone=moved.as_uri())) == second


def test_a_plan_fetches_no_checkpoint_and_knows_one_by_its_whole_digest(tmp_path, monkeypatch):
    monkeypatch.setenv("TUTTI_CACHE", str(tmp_path / "cache"))
    fsspec.filesystem("memory").pipe("/small.pt", SMALL.read_bytes())
    digests = (SMALL_SHA256, SMALL_SHA256[:8], None)
    told, short, unknown = (BackboneSpec(path="memory://small.pt", sha256=digest) for digest in digests)
    assert resolve_file(told, fetch=False) == told
    for spec in (short, unknown):
        with pytest.raises(InputError, match=r"memory://small.pt is not in the cache"):
            resolve_file(spec, fetch=False)
    assert not (tmp_path / "cache").exists()
    assert resolve_file(unknown) == resolve_file(short, fetch=False) == told


def test_a_checkpoint_that_cannot_be_used_is_named(checkpoint, tmp_path):
    missing = tmp_path / "none.pt", None, "none.pt: no such file.*--backbone FILE"
    for path, sha256, message in (missing, (checkpoint, "0" * 8, "has sha256")):
        with pytest.raises(InputError, match=message):
            resolve_file(BackboneSpec(path=str(path), sha256=sha256))


def test_what_is_not_there_for_a_branch_is_told_before_the_training(dataset, tmp_path):
    (tmp_path / "text.pt").write_text("hello")
    text, noise = str(tmp_path / "text.pt"), noise_index(dataset)
    check_branches(branches({"augmentation": {"noise": {}}}), noise)
    for settings, message in (
        ({"branch": {"backbone": text}}, "text.pt is not a BEATs checkpoint"),
        ({"branch": {"masked_prediction": {"tokenizers": [text]}}}, "text.pt is not a BEATs checkpoint"),
        ({"branch": {"backbone": {"layers": [7]}}}, r"layers \[7\]: this BEATs has outputs 0 to"),
        ({"branch": {}, "embedding": {"layers": [7]}}, r"layers \[7\]: this BEATs has outputs 0 to"),
        ({"branch": {"augmentation": {"noise": {"source": "supplemental"}}}}, r"no machine has supplemental/\*noise"),
    ):
        with pytest.raises(InputError, match=message):
            check_branches(branches(**settings), noise)


def test_a_clip_whose_attention_no_memory_holds_is_named():
    index = pa.table({"path": ["fan/train/short.wav", "fan/train/long.wav"]})
    check_lengths(index, audio(1, 59), branches({}))
    check_lengths(index, audio(1, 10**7), branches({"backbone": "log_mel", "strategy": "frozen", "pooling": "mean"}))
    with pytest.raises(InputError, match=r"fan/train/long.wav: 10000000 s are too long"):
        check_lengths(index, audio(1, 10**7), branches({}))


def test_what_the_data_cannot_give_is_noted(dataset):
    index = read_index(dataset)
    pump = index.filter(pa.compute.equal(index["machine"], "pump"))  # which has no attributes

    def notes(branch, index=pump, channels=2):
        clips = audio(*[1] * len(index), channels=channels)
        return [note.split(":")[0] for note in notes_on(index, clips, branches(branch))]

    assert notes({}, index) == notes({"channel": "far"}, index) == notes({}, index, channels=1) == []
    assert notes({}) == ["all training clips are of one class"]
    assert notes({"classes": {"pseudo_labels": {}}}) == []
    assert notes({"strategy": "frozen", "pooling": "mean"}) == []
    generated = {"augmentation": {"generated": {}}}
    source = index.filter(pa.compute.equal(index["domain"], "source"))
    assert [notes(generated, clips) for clips in (index, source)] == [[], ["no operating state is rare"]]
    for branch in ({"channel": "cancel"}, {"augmentation": {"noise": {}}}):
        assert notes(branch, index, channels=1) == [f"{len(index)} of {len(index)} clips have one channel"]


def spec(path, **settings):
    return BranchSpec.model_validate({"backbone": {"path": str(path)}, **settings})


def test_the_size_of_a_file_what_is_trained_and_every_clip_that_is_seen_count(tmp_path):
    def cost(path="tiny", clips=1000, **settings):
        return petaflop(spec(path, **settings), clips)

    copy = shutil.copy(SMALL, tmp_path / "mine.pt")
    assert cost(copy) == pytest.approx(cost("small"), rel=0.6)  # the file is in half precision
    assert cost(tmp_path / "not_yet_there.pt") > 50 * cost(copy)
    speeds = [core_gflops(spec(path)) for path in ("tiny", "small", "not_yet_there.pt")]
    assert speeds == sorted(set(speeds))
    costs = [cost(strategy=name) for name in ("frozen", "head", "lora", "full")]
    assert costs == sorted(set(costs))
    assert cost(clips=2000, strategy="frozen") == 2 * costs[0]
    for setting, usual in (("steps", 10_000), ("batch_size", 32), ("accumulation", 1), ("crop_seconds", 10)):
        twice = cost(strategy="full", training={setting: 2 * usual})
        assert twice - costs[0] == pytest.approx(2 * (costs[-1] - costs[0]))
    times = [duration(seconds) for seconds in (8.2, 89, 91, 5300, 11100)]
    assert times == ["8 s", "89 s", "2 min", "88 min", "3 h 05 min"]


def test_the_page_of_all_settings_is_what_their_classes_say():
    shown = tutti_here("show", "--settings")
    page = Path(__file__).parents[2] / "docs" / "settings.md"
    assert shown.stdout == page.read_text(encoding="utf-8"), "tutti show --settings > docs/settings.md"
    assert shown.exit_code == 0
