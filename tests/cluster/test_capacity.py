"""What falls to a branch on clusters of several nodes, as Ray itself counts."""

import pytest
import ray

from cluster.capacity import GIB, gpus_of_a_branch, largest_memory, memory_share, require, slots
from scoring.errors import InputError
from tests.cluster.conftest import SOCKETS_STAY_OPEN, ray_cluster

pytestmark = [pytest.mark.slow, SOCKETS_STAY_OPEN]


@pytest.fixture(scope="module", autouse=True)
def nodes():
    """A large node without GPUs, and a small one with two."""
    with ray_cluster(num_cpus=8, memory=64 * GIB) as cluster:
        cluster.add_node(num_cpus=4, num_gpus=2, memory=8 * GIB)
        ray.init(address=cluster.address, log_to_driver=False)
        yield


@pytest.mark.parametrize(
    ("resources", "branches"),
    [
        ({"CPU": 3}, 2 + 1),
        ({"CPU": 3, "GPU": 0}, 2 + 1),
        ({"CPU": 1, "GPU": 1}, 2),
        ({"CPU": 1, "GPU": 0.5}, 4),
        ({"CPU": 0.1, "GPU": 0.1}, 20),  # although 2 // 0.1 is 19
        ({"CPU": 1, "GPU": 1 / 3}, 4),  # of CPUs
        ({"CPU": 1, "memory": 5 * GIB}, 8 + 1),
    ],
)
def test_slots_are_counted_node_by_node(resources, branches):
    assert slots(resources) == branches


def test_a_branch_has_a_gpu_where_there_are_any_unless_told_otherwise():
    assert [gpus_of_a_branch(wanted) for wanted in (None, 0.25, 0.0)] == [1, 0.25, 0]


def test_memory_is_shared_by_what_fits_on_a_node():
    assert largest_memory({"CPU": 1.0}) == 64 * GIB
    assert largest_memory({"CPU": 1.0, "GPU": 1.0}) == 8 * GIB
    assert memory_share({"CPU": 1.0}) == 2 * GIB
    assert memory_share({"CPU": 4.0}) == 8 * GIB
    assert memory_share({"CPU": 1.0, "GPU": 1.0}) == 4 * GIB  # the node without GPUs has no say
    assert memory_share({"GPU": 3.0}) == largest_memory({"GPU": 3.0}) == 0


def test_what_no_node_can_give_is_refused():
    require({"CPU": 4, "GPU": 2, "memory": 8 * GIB})
    with pytest.raises(InputError, match="needs 9 CPU on one node, the largest node has 8 CPU"):
        require({"CPU": 9})
    with pytest.raises(InputError, match="1 GPU, 16 GiB memory on one node, the largest node has 2 GPU, 64 GiB memory"):
        require({"GPU": 1, "memory": 16 * GIB})
