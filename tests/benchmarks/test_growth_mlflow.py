"""How the cost of MLflow grows with the records of a run, in CPU seconds."""

import time
from math import log2

import pytest

from tests.orchestrator.ledgers import Ledger, finished_branch

CELLS = [f"knn.m{i}.{cell}" for i in range(7) for cell in ("hmean", "auc_source", "auc_target", "pauc")]
KNOWN = {"metrics": {"knn.omega": 60.0, "seconds": 9.0, **dict.fromkeys(CELLS, 50.0)}, "tags": {"system": "one"}}
KNOWN |= {"params": {f"setting.{i}": "1" for i in range(45)}, "curve": [(step, 1.0) for step in range(100)]}


def cpu(action):
    began = time.process_time()
    assert action() == 0
    return time.process_time() - began


def costs(ledger, n):
    outbox = ledger.outbox
    assert outbox.send() == 0  # loads and opens
    for i in range(n):
        finished_branch(ledger.out, f"a/b/{i}", bytes(200_000), **KNOWN)
    took = {"all": cpu(outbox.send), "idle": min(cpu(outbox.send) for _ in range(5))}
    finished_branch(ledger.out, f"a/b/{n}", bytes(200_000), **KNOWN)
    took |= {"one new": cpu(outbox.send), "closed": cpu(lambda: outbox.close("FINISHED"))}
    return took | {"sent before": cpu(lambda: ledger.outbox.close("FINISHED"))}


@pytest.mark.benchmark
def test_sending_grows_with_what_is_new_and_hardly_with_what_is_there(tmp_path, shared):
    by_number = {n: costs(Ledger(tmp_path / str(n), shared), n) for n in (100, 200, 400)}
    for name in by_number[100]:
        exponent = log2(by_number[400][name] / by_number[100][name]) / 2
        print(f"\n{name}: {', '.join(f'{took[name]:.4f} s' for took in by_number.values())}; exponent {exponent:.2f}")
        assert exponent < 1.3
    assert by_number[400]["idle"] < by_number[400]["all"] / 5000
