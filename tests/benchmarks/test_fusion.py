"""What fusion costs on one core, as ratios measured in one run (fusion.md)."""

import time
from collections.abc import Callable

import hyperopt
import numpy as np
import pyarrow.compute as pc
import pytest
from threadpoolctl import threadpool_limits

from fusion.hierarchy import tables_of
from fusion.joined import Joined
from fusion.labelled import LabelledScores
from fusion.methods import to_weights
from fusion.search import fuse
from scoring.calibration import calibrate
from scoring.table import conform, with_scores
from tests.benchmarks.measured import fastest, sklearn_cells
from tests.tables import make_table

pytestmark = pytest.mark.benchmark

MACHINES = tuple(f"machine{i}" for i in range(7))
SHAPE = ((1, 1), (1, 1, 1, 1), (1, 1, 1, 1, 1), (3, 3, 3), (2,))  # seeds of each configuration of each sub-system
TREE = {
    f"s{i}": {f"c{j}": [f"{i}.{j}.{k}" for k in range(seeds)] for j, seeds in enumerate(configurations)}
    for i, configurations in enumerate(SHAPE)
}


@pytest.fixture(autouse=True)
def one_core():
    with threadpool_limits(1):
        yield


def seconds(*calls: Callable[[], object], rounds: int = 1) -> list[float]:
    """Of one core's time: what else runs on the machine would decide otherwise."""
    return fastest(*calls, rounds=rounds, clock=time.process_time)


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
    return LabelledScores.of(joined.names, joined.values, joined.first)


def test_one_weight_vector_against_sklearn():
    tables = pool([str(i) for i in range(40)])
    scores, many = labelled(tables), np.random.default_rng(0).dirichlet(np.ones(40), 64)
    test = {name: table.filter(pc.equal(table["split"], "test")) for name, table in tables.items()}
    values, first = np.stack([table["calibrated"].to_numpy() for table in test.values()]), test["0"]

    def sklearn_omega() -> float:
        return 100 / np.mean(1 / np.array(sklearn_cells(first, many[0] @ values)))

    assert scores.omega(many[0]) == pytest.approx(sklearn_omega())
    theirs, ours, batch = seconds(
        sklearn_omega,
        lambda: [scores.omega(many[0]) for _ in range(20)],
        lambda: scores.omega(many),
        rounds=15,
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
    tables = pool(tables_of(TREE))
    scores = labelled(tables)
    ours, theirs = seconds(lambda: fuse(tables, TREE), lambda: flat_search(scores, 1000))
    print(f"\nall methods, LOMO, bootstrap: {ours:.1f} s; flat TPE, 1000 trials: {theirs:.1f} s: {ours / theirs:.2f}")
    assert ours < theirs
