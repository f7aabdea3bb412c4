"""Generated clips in a whole run on Ray: a set that works, one that fails, and data with nothing to generate."""

import json

import pytest

from branches.data.synthetic import SyntheticSize, write_dataset
from scoring.table import read_table
from tests.commands import tutti

SYSTEM = """
name: generating
branch:
  embedding_dim: 16
  training: {steps: 4, batch_size: 8, crop_seconds: 0.8, warmup_steps: 2}
subsystems:
  generated:
    good: {branch: {augmentation: {generated: GOOD}}}
    hopeless: {branch: {augmentation: {generated: HOPELESS}}}
  recorded:
    frozen: {branch: {strategy: frozen, channel: cancel, pooling: relative_deviation}, detector: band_knn}
    pseudo: {branch: {strategy: lora, classes: {pseudo_labels: {source: 2, target: 2}}, pooling: mean}}
"""
GOOD = (
    "{width: 16, depth: 1, steps: 5, batch_size: 4, crop_seconds: 1, sampling_steps: 2, far_above: 100, copy_below: 0}"
)
HOPELESS = GOOD.replace("far_above: 100", "far_above: 1.0e-9")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("generation")
    write_dataset(root / "data", SyntheticSize(24, 4, 2, 1.0), machines=["rotor", "slider"])
    return root


def write_system(place, *configurations):
    lines = SYSTEM.replace("GOOD", GOOD).replace("HOPELESS", HOPELESS).splitlines()
    left_out = [f"    {name}:" for name in ("good", "hopeless", "frozen", "pseudo") if name not in configurations]
    kept = [line for line in lines if not line.startswith(tuple(left_out))]
    (place / "system.yaml").write_text("\n".join(kept))


def run(place, *options):
    return tutti("run", place / "system.yaml", "--data", place / "data", "--out", place / "out", *options)


@pytest.mark.slow
def test_a_generator_that_fails_takes_only_its_branches_with_it(place):
    write_system(place, "good", "hopeless", "frozen", "pseudo")
    failed = run(place)
    assert failed.returncode == 1, failed.stderr
    assert "1 branch failed, the others are kept" in failed.stderr
    assert "generated/hopeless/0 (system generating): " in failed.stderr
    assert "samples passed the check" in failed.stderr
    sets = list((place / "out" / "generated").glob("*/check.json"))
    assert len(sets) == 2

    write_system(place, "good", "frozen", "pseudo")
    before = [path.stat().st_mtime_ns for path in sets]
    finished = run(place, "--json")
    assert finished.returncode == 0, finished.stderr
    assert "4 of 4 branches finished" in finished.stderr
    assert [path.stat().st_mtime_ns for path in sets] == before
    result = json.loads(finished.stdout)["systems"]["generating"]
    tables = {branch["branch"]: branch["detector"] for branch in result["branches"]}
    assert tables == {
        "generated/good/0": "mahalanobis",
        "recorded/frozen/0": "patches-poolingrelative_deviation.band_knn",
        "recorded/pseudo/0": "mahalanobis",
    }
    assert read_table(place / "out" / "systems" / "generating" / "fused.parquet").num_rows == 2 * (28 + 8)
