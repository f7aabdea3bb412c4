"""How fast scoring is on this machine, as ratios measured in one run.

    pytest -m benchmark -s tests/benchmarks/test_scoring.py

What is compared alternates, and the fastest round of each counts.
"""

import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

from scoring.bootstrap import bootstrap_intervals
from scoring.detectors import BandKnnSpec
from scoring.domains import Detector
from scoring.mahalanobis import Mahalanobis
from scoring.metrics import LabelledCells, metrics_of_cells, official_metrics
from scoring.neighbours import NearestNeighbours
from tests.tables import make_table

pytestmark = pytest.mark.benchmark

MACHINES = ["bearing", "fan", "gearbox", "slider", "car", "train", "valve"]


def fastest(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each function's fastest call."""
    best = [float("inf")] * len(functions)
    for _ in range(rounds):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - start)
    return best


@pytest.fixture(scope="module")
def table() -> pa.Table:
    """1 400 test clips."""
    return make_table(MACHINES, per_cell=50, train=0)


def sklearn_cells(table: pa.Table) -> list[float]:
    """The 21 cells with one call of scikit-learn each."""
    machine, domain, condition, score = (table[c].to_numpy() for c in ("machine", "domain", "condition", "score"))
    anomaly, cells = condition == "anomaly", []
    for name in MACHINES:
        own = machine == name
        for of_domain in ("source", "target"):
            rows = own & (anomaly | (domain == of_domain))
            cells.append(roc_auc_score(anomaly[rows], score[rows]))
        cells.append(roc_auc_score(anomaly[own], score[own], max_fpr=0.1))
    return cells


def test_metrics_against_one_call_of_scikit_learn_per_cell(table):
    cells, score = LabelledCells.from_table(table), table["score"].to_numpy()

    def labels_known() -> object:
        return metrics_of_cells(cells.machines, cells.values(score))

    functions = [labels_known, lambda: official_metrics(table), lambda: sklearn_cells(table)]
    alone, whole, theirs = fastest(*functions, rounds=50)
    print(f"\nmetrics {alone * 1e3:.2f} ms against {theirs * 1e3:.1f} ms: {theirs / alone:.0f}×")
    print(f"  with the labels read from the table {whole * 1e3:.2f} ms: {theirs / whole:.0f}×")
    assert theirs / alone > 50
    assert theirs / whole > 20


def test_bootstrap(table):
    (seconds,) = fastest(lambda: bootstrap_intervals(table, 1000), rounds=3)
    print(f"\n1 000 bootstrap replicates of 1 400 clips: {seconds:.2f} s")
    assert seconds < 2


def test_memory_of_a_large_bank():
    """10 000 normals × 768, ten times a machine's, with leave-one-out; a whole matrix alone would have 0.75 GiB."""
    bank = np.random.default_rng(0).standard_normal((10_000, 768), np.float32)
    tracemalloc.start()
    start = time.perf_counter()
    NearestNeighbours(4, density="difference").fit(bank).held_out_score_samples()
    seconds, gib = time.perf_counter() - start, tracemalloc.get_traced_memory()[1] / 2**30
    tracemalloc.stop()
    print(f"\nleave-one-out of 10 000 clips: {seconds:.0f} s, {gib:.2f} GiB above the bank")
    assert gib < 0.5


def recipe_detector(bank: np.ndarray) -> Detector:
    """The recipe's detector, fitted to the clips of all domains."""
    density = {"name": "difference", "k": 4, "weight": "fitted"}
    return BandKnnSpec(banks="pooled", density=density).build().fit(bank, np.zeros(len(bank), int))


def recipe_loop(bank: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Distances of queries, band by band with scikit-learn: nothing is left out but a clip from its own density."""
    by_band = []
    for f in range(bank.shape[1]):
        references, asked = bank[:, f].astype(np.float64), queries[:, f].astype(np.float64)
        index = NearestNeighbors(n_neighbors=4, metric="cosine", algorithm="brute").fit(references)
        near, who = index.kneighbors()
        density = near.mean(axis=1)
        covariance = np.cov(near[:, 0], density[who[:, 0]])
        weight = covariance[0, 1] / covariance[1, 1] if covariance[1, 1] > 1e-12 else 0.0
        distance, who = index.kneighbors(asked, n_neighbors=len(references))
        by_band.append((distance - weight * density[who]).min(axis=1))
    return np.mean(by_band, axis=0)


def test_the_recipe_of_a_pooled_bank_against_a_loop_over_scikit_learn():
    """12 machines × 1 000 normals × 8 bands × 768, by the fastest of four; the loop leaves out a few of the 1 000."""
    few, fastest_of_each, off = 5, np.full(4, np.inf), 0.0
    with threadpool_limits(1):
        for machine in range(4):
            rng = np.random.default_rng(machine)
            common, X = rng.standard_normal((8, 768), np.float32), rng.standard_normal((1200, 8, 768), np.float32)
            bank, queries = np.split(X + 2 * common, [1000])
            times = [time.process_time()]
            fitted = recipe_detector(bank)
            ours = fitted.distances(queries)[:, 0]
            times.append(time.process_time())
            held_out = fitted.held_out_distances()[:, 0]
            times.append(time.process_time())
            theirs = recipe_loop(bank, queries)
            times.append(time.process_time())
            left_out = [recipe_loop(np.delete(bank, i, axis=0), bank[i : i + 1])[0] for i in range(few)]
            times.append(times[-1] + (time.process_time() - times[-1]) * len(bank) / few)
            fastest_of_each = np.minimum(fastest_of_each, np.diff(times))
            off = max(off, np.abs(ours - theirs).max(), np.abs(held_out[:few] - left_out).max())
    scored, crossfitted, loop, loop_crossfitted = 12 * fastest_of_each
    print(f"\nrecipe, seconds of one core; largest difference {off:.1e}")
    print(f"  test clips {scored:.1f} against {loop:.1f} of a loop: {loop / scored:.1f}×")
    times_faster = loop_crossfitted / crossfitted
    print(f"  exact leave-one-out {crossfitted:.1f} against {loop_crossfitted:.0f}: {times_faster:.0f}×")
    assert off < 1e-6
    assert scored + crossfitted < 10
    assert loop_crossfitted > 50 * crossfitted


@pytest.mark.parametrize("standardised", [False, True])
def test_exact_leave_one_out_of_mahalanobis(standardised):
    """One machine of 1 000 normals × 768; refitting without each is timed on a few."""
    few, X = 5, np.random.default_rng(1).standard_normal((1000, 768), np.float32)
    domain = (np.arange(1000) < 10).astype(int)
    with threadpool_limits(1):
        fitted = Mahalanobis(standardised=standardised).fit(X, domain)
        start = time.process_time()
        held_out = fitted.held_out_distances()
        ours = time.process_time() - start
        start = time.process_time()
        for i in range(few):
            others = Mahalanobis(standardised=standardised).fit(np.delete(X, i, axis=0), np.delete(domain, i))
            np.testing.assert_allclose(held_out[i], others.distances(X[i : i + 1])[0], rtol=1e-9)
        theirs = (time.process_time() - start) * len(X) / few
    print(f"\nMahalanobis{', standardised' if standardised else ''}: {ours:.2f} s against {theirs:.0f}")
    assert theirs > 50 * ours
