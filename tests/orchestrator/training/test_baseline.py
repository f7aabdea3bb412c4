import numpy as np
import pytest

from branches.audio.cache import open_cache
from branches.data.dataset import Dataset
from branches.data.synthetic import SyntheticSize, write_dataset
from orchestrator.training.baseline import baseline_beside, has_baseline, read_baseline


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("baseline")
    write_dataset(root / "data", SyntheticSize(8, 3, 2, 1.0), machines=["rotor"])
    return Dataset.read(root / "data")


@pytest.fixture(scope="module")
def audio(dataset, tmp_path_factory):
    return open_cache(dataset.root, dataset.index, tmp_path_factory.mktemp("cache") / "decoded")


def test_it_is_there_when_the_branches_are(dataset, audio, tmp_path):
    with baseline_beside(tmp_path, audio, dataset.index, dataset.fingerprint) as abandoned:
        pass
    assert not abandoned.is_set()
    baseline = read_baseline(tmp_path, dataset.fingerprint)
    assert baseline is not None
    assert 0 <= baseline["omega"] <= 100
    assert read_baseline(tmp_path, "other data") is None


class Endless:
    """Clips without an end."""

    def __len__(self):
        return 1 << 60

    def waveform(self, clip, channel):
        return np.ones(16_000, np.float32)


def test_an_interrupted_run_does_not_wait_for_it(dataset, tmp_path):
    with (
        pytest.raises(KeyboardInterrupt),
        baseline_beside(tmp_path, Endless(), dataset.index, dataset.fingerprint),
    ):
        raise KeyboardInterrupt
    with baseline_beside(tmp_path, Endless(), dataset.index, dataset.fingerprint) as abandoned:
        abandoned.set()
    assert read_baseline(tmp_path, dataset.fingerprint) is None
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_baseline_that_cannot_be_written_keeps_no_branch_back(dataset, audio, tmp_path, caplog):
    (tmp_path / "baselines").write_text("in the way")
    with baseline_beside(tmp_path, audio, dataset.index, dataset.fingerprint):
        pass
    assert "no log-mel baseline: " in caplog.text
    assert "the next run makes it" in caplog.text
    assert not has_baseline(tmp_path, dataset.fingerprint)


def test_its_failure_is_not_lost(dataset, tmp_path):
    with pytest.raises(AttributeError), baseline_beside(tmp_path, [None], dataset.index, dataset.fingerprint):
        pass
