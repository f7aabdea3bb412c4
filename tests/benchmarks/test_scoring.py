"""How fast scoring is, on one core, as ratios measured in one run (scoring.md)."""

import time
import tracemalloc
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from threadpoolctl import threadpool_limits

from scoring.bootstrap import bootstrap_intervals
from scoring.detectors import BandKnnSpec, MahalanobisSpec
from scoring.metrics import LabelledCells, metrics_of_cells, official_metrics
from scoring.neighbours import NearestNeighbours
from tests.benchmarks.measured import fastest, sklearn_cells
from tests.tables import make_table

pytestmark = pytest.mark.benchmark

MACHINES = ["bearing", "fan", "gearbox", "slider", "car", "train", "valve"]


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """1 400 test clips."""
    return make_table(MACHINES, per_cell=50, train=0)


def test_metrics_against_one_call_of_scikit_learn_per_cell(table):
    cells, score = LabelledCells.from_table(table), table["score"].to_numpy()
    known, whole, theirs = fastest(
        lambda: metrics_of_cells(cells.machines, cells.values(score)),
        lambda: official_metrics(table),
        lambda: sklearn_cells(table, score),
        rounds=50,
    )
    (bootstrap,) = fastest(lambda: bootstrap_intervals(table, 1000), rounds=3)
    print(f"\nmetrics {known * 1e3:.2f} ms against {theirs * 1e3:.1f} ms: {theirs / known:.0f}×")
    print(f"  with the labels read from the table {whole * 1e3:.2f} ms: {theirs / whole:.0f}×")
    print(f"1 000 bootstrap replicates of 1 400 clips: {bootstrap:.2f} s")
    assert theirs > 50 * known
    assert theirs > 20 * whole
    assert bootstrap < 2


def test_memory_of_a_large_bank():
    """10 000 normals × 768, ten times a machine's, with leave-one-out; a whole matrix alone would have 0.75 GiB."""
    bank = np.random.default_rng(0).standard_normal((10_000, 768), np.float32)
    tracemalloc.start()
    NearestNeighbours(4, density="difference").fit(bank).held_out_score_samples()
    gib = tracemalloc.get_traced_memory()[1] / 2**30
    tracemalloc.stop()
    print(f"\nleave-one-out of 10 000 clips: {gib:.2f} GiB above the bank")
    assert gib < 0.5


RECIPE = {"name": "difference", "k": 4, "weight": "fitted"}


@pytest.mark.parametrize(
    ("spec", "shape"),
    [
        (MahalanobisSpec(), (768,)),
        (MahalanobisSpec(standardised=True), (768,)),
        (BandKnnSpec(banks="pooled", density=RECIPE), (8, 768)),
    ],
    ids=["mahalanobis", "standardised", "band_knn"],
)
def test_exact_leave_one_out_against_refitting_without_each(spec, shape):
    """One machine of 1 000 normals; refitting is timed on a few of them."""
    few, rng = 5, np.random.default_rng(1)
    X = rng.standard_normal((1000, *shape), np.float32) + 2 * rng.standard_normal(shape, np.float32)
    domain = (np.arange(1000) < 10).astype(int)
    fitted = spec.build().fit(X, domain)

    def refit() -> list[np.ndarray]:
        rest = ((i, np.delete(np.arange(1000), i)) for i in range(few))
        return [spec.build().fit(X[others], domain[others]).distances(X[i : i + 1])[0] for i, others in rest]

    np.testing.assert_allclose(fitted.held_out_distances()[:few], refit(), rtol=1e-6)
    ours, theirs = fastest(fitted.held_out_distances, refit, rounds=3, clock=time.process_time)
    theirs *= 1000 / few
    print(f"\n{spec.name} of {shape}, exact leave-one-out: {ours:.2f} s against {theirs:.0f}: {theirs / ours:.0f}×")
    assert theirs > 50 * ours
