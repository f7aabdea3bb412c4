from cluster.session import session
from fusion.job import run_on_ray
from fusion.search import fuse
from tests.tables import make_table

TREE = {"a": {"x": ["x0"], "y": ["y0"]}}


def test_ray_tasks_find_what_one_core_finds():
    tables = {name: make_table(seed=i) for i, name in enumerate(["x0", "y0"])}
    with session(num_cpus=2):
        on_ray = fuse(tables, TREE, runner=run_on_ray)
    here = fuse(tables, TREE)
    assert on_ray.methods == here.methods
    assert on_ray.table.equals(here.table)
