"""What falls to a branch on clusters of several nodes, as Ray itself counts."""

import pytest
import ray
from ray.cluster_utils import Cluster

from cluster.capacity import GIB, gpus_of_a_branch, largest_memory, memory_share, require, slots
from scoring.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def nodes():
    """A large node without GPUs, and a small one with two."""
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 8, "memory": 64 * GIB, "include_dashboard": False}
    )
    try:
        cluster.add_node(num_cpus=4, num_gpus=2, memory=8 * GIB)
        ray.init(address=cluster.address, log_to_driver=False)
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def test_slots_are_counted_node_by_node():
    assert slots({"CPU": 3}) == 2 + 1
    assert slots({"CPU": 1, "GPU": 1}) == 2
    assert slots({"CPU": 1, "GPU": 0.5}) == 4
    assert slots({"CPU": 1, "GPU": 1 / 3}) == 4  # of CPUs; the GPUs would do for six
    assert slots({"CPU": 1, "memory": 5 * GIB}) == 8 + 1
    assert gpus_of_a_branch(None) == 1
    assert gpus_of_a_branch(0.25) == 0.25


def test_memory_is_shared_by_what_fits_on_a_node():
    assert largest_memory({"CPU": 1.0}) == 64 * GIB
    assert largest_memory({"CPU": 1.0, "GPU": 1.0}) == 8 * GIB
    assert memory_share({"CPU": 1.0}) == 2 * GIB
    assert memory_share({"CPU": 4.0}) == 8 * GIB
    assert memory_share({"CPU": 1.0, "GPU": 1.0}) == 4 * GIB  # the node without GPUs has no say


def test_what_no_node_can_give_is_refused():
    require({"CPU": 4, "GPU": 2, "memory": 8 * GIB})
    with pytest.raises(InputError, match="needs 9 CPU on one node, the largest node has 8 CPU"):
        require({"CPU": 9})
    with pytest.raises(InputError, match="1 GPU, 16 GiB memory on one node, the largest node has 2 GPU, 64 GiB memory"):
        require({"GPU": 1, "memory": 16 * GIB})
