"""Whatever the order in which trials end, each branch is embedded once, then scored once."""

from hypothesis import given
from hypothesis import strategies as st
from ray.tune.search import Searcher

from orchestrator.training.queue import BranchQueue, begin_with


@given(st.integers(0, 5), st.sets(st.integers(0, 4)), st.sets(st.integers(0, 4)), st.booleans(), st.data())
def test_every_branch_once(n, embedded, failing, gpus, data):
    ids = [str(i) for i in range(n)]
    queue = BranchQueue(begin_with(ids, {str(i) for i in embedded}, float(gpus)))
    done, running, number = [], {}, 0
    while True:
        step = queue.suggest(str(number))
        if step == Searcher.FINISHED:
            break
        if step is not None:
            running[str(number)] = step["branch_id"], step["part"]
            number += 1
        if running and (step is None or data.draw(st.booleans())):
            ended = data.draw(st.sampled_from(sorted(running)))
            branch, part = running.pop(ended)
            fails = int(branch) in failing
            result = {"failure": "of its own"} if fails and data.draw(st.booleans()) else {"omega": None}
            queue.on_trial_complete(ended, result, error=fails and "omega" in result)
            done.append((branch, part))
    done += running.values()
    parts = {branch: [part for other, part in done if other == branch] for branch in ids}
    for branch in ids:
        i = int(branch)
        expected = ["embeddings", "scores"] if i not in embedded else ["scores"]
        if not gpus:
            expected = ["all"]
        elif i in failing:
            expected = expected[:1]
        assert parts[branch] == expected


def test_scores_come_before_other_branches():
    queue = BranchQueue(begin_with(["a", "b"], set(), 1.0))
    assert queue.suggest("1") == {"branch_id": "a", "part": "embeddings"}
    queue.on_trial_complete("1", {"omega": None})
    assert queue.suggest("2") == {"branch_id": "a", "part": "scores"}
    assert queue.suggest("3") == {"branch_id": "b", "part": "embeddings"}
    assert queue.suggest("4") is None  # until b is embedded
