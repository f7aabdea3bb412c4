"""Generated clips: a set is made once, by the first branch that wants it; a generator that fails ends only those."""

import re
from concurrent.futures import ThreadPoolExecutor

import pytest

from branches.audio.cache import open_cache
from branches.spec import BranchSpec
from orchestrator.plan import Branch
from orchestrator.training.generated import generated_clips, in_order, nothing_rare, on_sets, set_folders
from scoring.errors import InputError
from tests.orchestrator.training.conftest import Bench

GENERATOR = {"width": 16, "depth": 1, "steps": 3, "batch_size": 4, "crop_seconds": 0.8, "sampling_steps": 2}
GOOD = {"generated": {**GENERATOR, "fill": 1, "far_above": 100, "copy_below": 0}}
HOPELESS = {"generated": {**GENERATOR, "far_above": 1e-9}}


@pytest.fixture
def bench(dataset, tmp_path):
    bench = Bench(dataset, tmp_path / "out")
    bench.branch["augmentation"] = GOOD
    return bench


def branch(name="", **settings):
    return Branch(name, "", name, ("s",), BranchSpec(**settings), ())


@pytest.mark.slow
def test_the_first_branch_that_wants_a_set_makes_it(bench, tmp_path):
    bench.storage = (tmp_path / "storage").as_uri()
    assert bench.bring() == {"generator", "branch"}
    (folder,) = set_folders(bench.plan.branches, bench.job())
    written = (folder / "check.json").stat().st_mtime_ns
    bench.branch["embedding_dim"] = 4
    assert bench.bring() == {"branch"}
    assert (folder / "check.json").stat().st_mtime_ns == written
    (told,) = on_sets(bench.plan.branches, bench.job())
    assert re.match(r"generated clips: (\d+) of \1 samples passed the check \[.*check.json\]$", told)
    bench.branch["augmentation"] = HOPELESS
    with pytest.raises(InputError, match=r"of \d+ generated samples 0 passed the check"):
        bench.bring()
    assert on_sets(bench.plan.branches, bench.job())[0].startswith("generated clips: 0 of")
    bench.branch |= {"augmentation": GOOD, "embedding_dim": 2}
    bench.out = tmp_path / "another node's"
    assert bench.bring() == {"branch"}


@pytest.mark.slow
def test_of_branches_that_want_a_set_at_once_one_makes_it(bench):
    job, spec, index, steps = bench.job(), bench.plan.branches[0].spec, bench.dataset.index, []
    audio = open_cache(job.data, index, job.decoded)
    with ThreadPoolExecutor() as branches:
        tries = [branches.submit(generated_clips, spec, job, index, audio, lambda *r: steps.append(r)) for _ in "ab"]
    assert [step for _, step, _, _ in steps] == [1, 2, 3]
    assert tries[0].result()[0] == tries[1].result()[0]


def test_branches_that_share_a_set_start_when_it_may_be_there(bench):
    wanted = {"first": GOOD, "second": GOOD, "plain": {}, "third": GOOD, "other": HOPELESS}
    branches, job = [branch(name, augmentation=augmentation) for name, augmentation in wanted.items()], bench.job()
    assert [b.name for b in in_order(branches, job)] == ["first", "other", "plain", "second", "third"]
    others = [branch(augmentation=GOOD, channel="far"), *branches]
    assert [len(set_folders(some, job)) for some in (branches, others, branches[2:3])] == [2, 3, 0]
    assert set_folders(branches, bench.job(training="of others"))[0] not in set_folders(branches, job)


def test_where_no_state_is_rare_nothing_is_generated(bench):
    never, rare = (branch(augmentation={"generated": {**GENERATOR, "fill": fill}}) for fill in (0.1, 0.5))
    assert nothing_rare([never, rare], bench.dataset.index)
    assert not nothing_rare([rare, branch()], bench.dataset.index)
    for spec in (never.spec, BranchSpec()):
        assert generated_clips(spec, bench.job(), bench.dataset.index, None, print) is None
