import pytest

from cluster.session import session
from fusion.search import fuse
from tests.fusion.pools import make_pool

TREE = {"a": {"x": ["g0"], "y": ["g1"]}, "b": {"z": ["o0"]}}


@pytest.mark.slow
def test_ray_tasks_find_what_one_core_finds():
    tables = make_pool(("fan", "pump"), 8)
    here = fuse(tables, TREE)
    with session(num_cpus=2):
        from fusion.on_ray import run_on_ray  # imports ray, and that only after the session has set it up

        on_ray = fuse(tables, TREE, runner=run_on_ray)
    assert (on_ray.weights, on_ray.validation.methods) == (here.weights, here.validation.methods)
    assert on_ray.validation.lomo == here.validation.lomo
    assert on_ray.table.equals(here.table)
