"""What tutti costs, as ratios measured in one run: BEATs on two cores, scoring and fusion on one."""

import time
import tracemalloc
from itertools import count

import hyperopt
import numpy as np
import pyarrow.compute as pc
import pytest
import torch
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

from branches.audio.cache import open_cache
from branches.beats import attention
from branches.beats.checkpoint import random_beats
from branches.data.dataset import read_index
from branches.frozen import frozen_embeddings
from branches.spec import BranchSpec, PatchesSpec
from fusion.hierarchy import tables_of
from fusion.methods import to_weights
from fusion.search import fuse
from scoring.bootstrap import bootstrap_intervals
from scoring.calibration import calibrate
from scoring.detectors import BandKnnSpec, MahalanobisSpec
from scoring.metrics import LabelledCells, metrics_of_cells, official_metrics
from scoring.neighbours import NearestNeighbours
from scoring.table import conform, with_scores
from tests.fusion.pools import labelled
from tests.gpu.checks import BASE, measure_what_is_not_the_encoder
from tests.tables import make_table

pytestmark = pytest.mark.benchmark
MACHINES = ["bearing", "car", "fan", "gearbox", "slider", "train", "valve"]


@pytest.fixture(autouse=True)
def cores():
    with threadpool_limits(1):
        torch.set_num_threads(2)
        yield


def fastest(*calls, rounds=1, clock=time.perf_counter):
    """Seconds of each call's fastest round; the rounds of what is compared alternate."""
    best = [float("inf")] * len(calls)
    for _ in range(rounds):
        for i, call in enumerate(calls):
            start = clock()
            call()
            best[i] = min(best[i], clock() - start)
    return best


def eager_attention(q, k, v, gate, bias, padding, dropout=0.0):
    """Step by step, as published: the logits are brought down by 32 and their maximum for half precision."""
    logits = (q / 32 * q.shape[-1] ** -0.5) @ k.mT
    logits = (logits - logits.max(-1, keepdim=True).values) * 32 + gate * bias
    return F.dropout((logits if padding is None else logits + padding).softmax(-1), dropout) @ v


def peak_gib(step):
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as recorded:
        step()
    events = sorted(recorded.profiler.kineto_results.events(), key=lambda e: e.start_ns())
    return np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]).max() / 2**30


def test_training_step_against_eager_attention_and_its_share_that_is_not_the_encoder(monkeypatch):
    """Of BEATs' size (90 M parameters, random weights), with clips of 10 s."""
    model, features = random_beats(BASE, seed=0).train(), torch.randn(4, 998, 128)

    def ours():
        model.encode(features)[0].square().mean().backward()
        model.zero_grad()  # at the end: each step begins and ends with the same memory

    def eager():
        with monkeypatch.context() as patch:
            patch.setattr(attention, "gated_attention", eager_attention)
            ours()

    ours_s, eager_s = fastest(ours, eager, rounds=3)
    ours_gib, eager_gib = peak_gib(ours), peak_gib(eager)
    print(f"\ntraining step {ours_s:.2f} s against {eager_s:.2f} s eager: {eager_s / ours_s:.2f}×")
    print(f"peak memory {ours_gib:.2f} GiB against {eager_gib:.2f} GiB eager: {eager_gib / ours_gib:.2f}×")
    assert ours_s < eager_s
    assert ours_gib < 0.8 * eager_gib
    # Loading, log-mels, augmentation, labels of masked patches, loss and optimiser.
    assert measure_what_is_not_the_encoder("cpu", 4, 2) < 0.1


def test_one_pass_with_six_embeddings_against_six_passes(dataset, tmp_path):
    audio = open_cache(dataset, read_index(dataset), tmp_path / "cache")
    poolings = [{"name": "relative_deviation", "gamma": gamma} for gamma in (4, 6, 8)]
    patches = [PatchesSpec(pooling=p) for p in ("mean", "band_statistics", "band_mean", *poolings)]
    inputs = BranchSpec(strategy="frozen").frozen_inputs(patches)
    fresh = (tmp_path / str(i) for i in count())

    def embed(*groups):
        for group in groups:
            frozen_embeddings(group[0], group, audio, next(fresh), "cpu")

    together, alone = fastest(lambda: embed(inputs), lambda: embed(*([one] for one in inputs)), rounds=3)
    print(f"\n{len(inputs)} embeddings: one pass {together:.2f} s, one by one {alone:.2f} s: {alone / together:.1f}×")
    assert alone > 3 * together


def sklearn_cells(table, score):
    machine, domain, condition = (table[column].to_numpy() for column in ("machine", "domain", "condition"))
    anomaly, cells = condition == "anomaly", []
    for own in (machine == name for name in np.unique(machine)):
        for rows in (own & (anomaly | (domain == of_domain)) for of_domain in ("source", "target")):
            cells.append(roc_auc_score(anomaly[rows], score[rows]))
        cells.append(roc_auc_score(anomaly[own], score[own], max_fpr=0.1))
    return cells


def test_metrics_against_one_call_of_scikit_learn_per_cell():
    table = make_table(MACHINES, per_cell=50, train=0)
    cells, score = LabelledCells.from_table(table), table["score"].to_numpy()
    works = (
        lambda: metrics_of_cells(cells.machines, cells.values(score)),
        lambda: official_metrics(table),
        lambda: sklearn_cells(table, score),
    )
    known, whole, theirs = fastest(*works, rounds=50)
    (bootstrap,) = fastest(lambda: bootstrap_intervals(table, 1000), rounds=3)
    print(f"\nmetrics {known * 1e3:.2f} ms against {theirs * 1e3:.1f} ms: {theirs / known:.0f}×")
    print(f"  with the labels read from the table {whole * 1e3:.2f} ms: {theirs / whole:.0f}×")
    print(f"1 000 bootstrap replicates of 1 400 clips: {bootstrap:.2f} s")
    assert theirs > max(50 * known, 20 * whole)
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


POOLED = BandKnnSpec(banks="pooled", density={"name": "difference", "k": 4, "weight": "fitted"})


@pytest.mark.parametrize("spec", [MahalanobisSpec(), MahalanobisSpec(standardised=True), POOLED], ids=repr)
def test_exact_leave_one_out_against_refitting_without_each(spec):
    """One machine of 1 000 normals; refitting is timed on a few of them."""
    few, rng, shape = 5, np.random.default_rng(1), (8, 768) if spec.uses_bands else (768,)
    X = rng.standard_normal((1000, *shape), np.float32) + 2 * rng.standard_normal(shape, np.float32)
    domain = (np.arange(1000) < 10).astype(int)
    fitted = spec.build().fit(X, domain)

    def refit():
        rest = ((i, np.delete(np.arange(1000), i)) for i in range(few))
        return [spec.build().fit(X[others], domain[others]).distances(X[i : i + 1])[0] for i, others in rest]

    np.testing.assert_allclose(fitted.held_out_distances()[:few], refit(), rtol=1e-6)
    ours, theirs = fastest(fitted.held_out_distances, refit, rounds=3, clock=time.process_time)
    theirs *= 1000 / few
    print(f"\n{spec.name} of {shape}, exact leave-one-out: {ours:.2f} s against {theirs:.0f}: {theirs / ours:.0f}×")
    assert theirs > 50 * ours


def pool(names, shared=0.8):
    """Tables whose errors are mostly the same, as those of real branches are; and all of them with their labels."""
    base = make_table(MACHINES, 50, 10, 0.5, seed=0)
    tables = {}
    for i, name in enumerate(names):
        noise = np.random.default_rng(i).normal(size=len(base))
        score = shared * base["score"].to_numpy() + (1 - shared) * noise
        tables[name] = conform(with_scores(base, score, calibrate(base, score), {}))
    return tables, labelled(tables)


def test_one_weight_vector_against_sklearn():
    tables, scores = pool([str(i) for i in range(40)])
    many = np.random.default_rng(0).dirichlet(np.ones(40), 64)
    test = [table.filter(pc.equal(table["split"], "test")) for table in tables.values()]
    values = np.stack([table["calibrated"].to_numpy() for table in test])

    def sklearn_omega():
        return 100 / np.mean(1 / np.array(sklearn_cells(test[0], many[0] @ values)))

    assert scores.omega(many[0]) == pytest.approx(sklearn_omega())
    works = sklearn_omega, lambda: [scores.omega(many[0]) for _ in range(20)], lambda: scores.omega(many)
    theirs, ours, batch = fastest(*works, rounds=15, clock=time.process_time)
    ours, batch = ours / 20, batch / 64
    print(f"\nOmega of 40 tables: sklearn {theirs * 1e3:.1f} ms, ours {ours * 1e3:.3f} ms ({theirs / ours:.0f}×)")
    print(f"in a batch {batch * 1e3:.3f} ms ({theirs / batch:.0f}×)")
    assert theirs / ours >= 100


def flat_search(scores, trials):
    space = {str(i): hyperopt.hp.uniform(str(i), 0, 1) for i in range(len(scores.names))}
    settings = {"algo": hyperopt.tpe.suggest, "max_evals": trials, "rstate": np.random.default_rng(0)}

    def loss(point):
        return -float(scores.omega(to_weights(np.array([point[label] for label in space]))))

    hyperopt.fmin(loss, space, **settings, show_progressbar=False, verbose=False)


def test_the_whole_job_of_fusion_against_one_flat_search():
    seeds = ((1, 1), (1, 1, 1, 1), (1, 1, 1, 1, 1), (3, 3, 3), (2,))  # of each configuration of each sub-system
    tree = {
        f"s{i}": {f"c{j}": [f"{i}.{j}.{k}" for k in range(number)] for j, number in enumerate(numbers)}
        for i, numbers in enumerate(seeds)
    }
    tables, scores = pool(tables_of(tree))
    works = lambda: fuse(tables, tree), lambda: flat_search(scores, 1000)
    ours, theirs = fastest(*works, clock=time.process_time)
    print(f"\nall methods, LOMO, bootstrap: {ours:.1f} s; flat TPE, 1000 trials: {theirs:.1f} s: {ours / theirs:.2f}")
    assert ours < theirs
