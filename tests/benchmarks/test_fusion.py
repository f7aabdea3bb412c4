"""What fusion costs on this machine, as ratios measured in one run, and how it grows.

    pytest -m benchmark -s tests/benchmarks/test_fusion.py

TUTTI_SCORES names a folder of score tables with an index (see `tutti fuse`) for the whole job; without it tables of the
same shape are generated. The growth is drawn into docs/fusion_cost.png.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import hyperopt
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from threadpoolctl import threadpool_limits

import fusion.methods
from fusion.hierarchy import configurations_of, parts_of, tables_of
from fusion.joined import Joined
from fusion.labelled import LabelledScores
from fusion.methods import to_weights
from fusion.search import fuse
from fusion.tasks import Problem, search_weights
from orchestrator.fuse.tables import TableFiles, from_index
from scoring.calibration import calibrate
from scoring.metrics import official_metrics
from scoring.table import conform, with_scores
from tests.tables import make_table

pytestmark = pytest.mark.benchmark

MACHINES = tuple(f"machine{i}" for i in range(7))
SHAPE = ((1, 1), (1, 1, 1, 1), (1, 1, 1, 1, 1), (3, 3, 3), (2,))  # seeds of each configuration of each sub-system
TREE = {
    f"s{i}": {f"c{j}": [f"{i}.{j}.{k}" for k in range(seeds)] for j, seeds in enumerate(configurations)}
    for i, configurations in enumerate(SHAPE)
}
PLOT = Path(__file__).parents[2] / "docs" / "fusion_cost.png"


@pytest.fixture(autouse=True)
def one_core():
    with threadpool_limits(1):
        yield


def seconds(function: Callable[[], object]) -> float:
    """Of one core's time: what else runs on the machine would decide otherwise."""
    start = time.process_time()
    function()
    return time.process_time() - start


def alternating(*functions: Callable[[], object], rounds: int) -> list[float]:
    """Median seconds of each function, called in turn."""
    return np.median([[seconds(f) for f in functions] for _ in range(rounds)], axis=0).tolist()


def pool(names, per_cell=50, shared=0.8):
    """Tables whose errors are mostly the same, as those of real branches are."""
    base = make_table(MACHINES, per_cell, 10, 0.5, seed=0)
    tables = {}
    for i, name in enumerate(names):
        rng = np.random.default_rng(i)
        score = shared * base["score"].to_numpy() + (1 - shared) * rng.normal(size=len(base))
        tables[name] = conform(with_scores(base, score, calibrate(base, score), {}))
    return tables


def labelled(tables):
    joined = Joined.read(tables, tables)
    return LabelledScores.of(joined.names, joined.values, joined.first), joined.first


def test_one_weight_vector_against_sklearn():
    scores, table = labelled(pool([str(i) for i in range(40)]))
    whole = np.stack([t["calibrated"].to_numpy() for t in pool([str(i) for i in range(40)]).values()])
    rows = {
        machine: np.flatnonzero((table["machine"].to_numpy() == machine) & (table["split"].to_numpy() == "test"))
        for machine in MACHINES
    }
    anomaly = table["condition"].to_numpy() == "anomaly"
    domain = table["domain"].to_numpy()
    weights = np.random.default_rng(0).dirichlet(np.ones(40))

    def sklearn_omega() -> float:
        fused, cells = weights @ whole, []
        for own in rows.values():
            for name in ("source", "target"):
                kept = own[anomaly[own] | (domain[own] == name)]
                cells.append(roc_auc_score(anomaly[kept], fused[kept]))
            cells.append(roc_auc_score(anomaly[own], fused[own], max_fpr=0.1))
        return 100 / np.mean(1 / np.array(cells))

    many = np.random.default_rng(0).dirichlet(np.ones(40), 64)
    assert scores.omega(weights) == pytest.approx(sklearn_omega())
    theirs, ours, batch = alternating(
        sklearn_omega, lambda: [scores.omega(weights) for _ in range(20)], lambda: scores.omega(many), rounds=15
    )
    ours, batch = ours / 20, batch / 64
    print(f"\nOmega of 40 tables: sklearn {theirs * 1e3:.1f} ms, ours {ours * 1e3:.3f} ms ({theirs / ours:.0f}×)")
    print(f"in a batch {batch * 1e3:.3f} ms ({theirs / batch:.0f}×)")
    assert theirs / ours >= 100


def flat_search(scores: LabelledScores, trials: int) -> None:
    """What is usually done: one TPE search over the weights of all tables."""
    labels = [str(i) for i in range(len(scores.names))]
    hyperopt.fmin(
        lambda point: -float(scores.omega(to_weights(np.array([point[label] for label in labels])))),
        {label: hyperopt.hp.uniform(label, 0, 1) for label in labels},
        algo=hyperopt.tpe.suggest,
        max_evals=trials,
        rstate=np.random.default_rng(0),
        show_progressbar=False,
        verbose=False,
    )


def test_the_whole_job_against_one_flat_search():
    if folder := os.environ.get("TUTTI_SCORES"):
        tree, files = from_index(Path(folder))
        tables = dict(TableFiles(files, transductive=True))
    else:
        tree, tables = TREE, pool(tables_of(TREE))
    scores, _ = labelled(tables)
    ours = seconds(lambda: fuse(tables, tree))
    theirs = seconds(lambda: flat_search(scores, 1000))
    print(f"\nall methods, LOMO, bootstrap: {ours:.1f} s; flat TPE, 1000 trials: {theirs:.1f} s: {ours / theirs:.2f}")
    assert ours < theirs


def task_seconds(per_table: int, per_cell: int = 50, trials: int = 60) -> float:
    """One task, all methods, on five sub-systems with `per_table` configurations each."""
    tree = {f"s{i}": {f"c{j}": [f"{i}.{j}"] for j in range(per_table)} for i in range(5)}
    scores, _ = labelled(pool(tables_of(tree), per_cell))
    problem = Problem(configurations_of(scores, tree), parts_of(tree), 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fusion.methods, "TRIALS", trials)
        patch.setattr(fusion.methods, "PATIENCE", trials)
        patch.setattr(fusion.methods, "RESTARTS", 1)
        return seconds(lambda: search_weights(problem, frozenset()))


def test_growth_with_tables_clips_and_trials():
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    task_seconds(1)
    studies = {
        "tables": {5 * n: task_seconds(n, trials=15) for n in (1, 2, 4, 8, 16)},
        "labelled clips": {28 * n: task_seconds(4, n, 15) for n in (25, 50, 100, 200, 400)},
        "TPE trials per level": {n: task_seconds(4, trials=n) for n in (15, 30, 60, 120)},
    }
    figure, axes = pyplot.subplots(1, 3, figsize=(9, 2.8), sharey=True, layout="constrained")
    for axis, (name, values) in zip(axes, studies.items(), strict=True):
        slope = np.polyfit(np.log(list(values)), np.log(list(values.values())), 1)[0]
        print(
            f"\nseconds of one task by {name}: { ({k: round(v, 2) for k, v in values.items()}) }, exponent {slope:.2f}"
        )
        axis.loglog(list(values), list(values.values()), "o-", color="#0072b2")
        axis.set(xlabel=name, title=f"∝ n^{slope:.1f}")
        axis.set_xticks(list(values), map(str, values), minor=False)
        axis.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
        axis.minorticks_off()
        assert slope < 2
    axes[0].set_ylabel("seconds of one task")
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=100)
    pyplot.close(figure)


class ManyTables(dict):
    """Tables made when they are asked for, as those of a folder are read."""

    def __init__(self, names, base) -> None:
        super().__init__(dict.fromkeys(names))
        self.base = base

    def __getitem__(self, name):
        rng = np.random.default_rng(int(name.replace(".", "")))
        score = self.base["score"].to_numpy() + rng.normal(size=len(self.base))
        return with_scores(self.base, score, calibrate(self.base, score), {})


def large_fusion(clips: int) -> None:
    """1000 tables of so many clips on two machines: everything but the repetitions of the search; prints GiB and s."""
    tree = {f"s{i}": {f"c{j}": [f"{i}.{j}.{k}" for k in range(5)] for j in range(20)} for i in range(10)}
    base = make_table(("a", "b"), clips // 16, clips // 4, 0.5, seed=0)
    start = time.perf_counter()
    fused = fuse(ManyTables(tables_of(tree), base), tree, runner=_searched_once)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    omega = official_metrics(fused.table).omega
    print(f"{base.num_rows} clips, {peak:.2f} GiB, {time.perf_counter() - start:.0f} s, Omega {omega:.1f}")


def _searched_once(problem, tasks):
    """A runner that takes the first task's result for all: memory does not depend on how often a search is repeated."""
    found = search_weights(problem, tasks[0])
    for task in tasks:
        yield task, found


def test_memory_of_a_thousand_tables():
    """At a tenth of the clips, in a process of its own; a tenth of 16 GiB and what Python needs to start."""
    clips = int(os.environ.get("TUTTI_CLIPS", "10000"))
    code = f"from tests.benchmarks.test_fusion import large_fusion; large_fusion({clips})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    print(f"\n1000 tables: {run.stdout.strip()}")
    assert float(run.stdout.split(" GiB")[0].split()[-1]) < 16 * clips / 100_000 + 0.4
