import numpy as np
import pyarrow as pa
import pytest

from branches.data.dataset import index_of
from branches.training.classes import MIN_CLUSTER, classes_of


def train_index(unattributed=40, target=10):
    names = [f"fan/train/section_00_source_train_normal_{i:04d}_spd_{i % 2}.wav" for i in range(8)]
    names += [f"pump/train/section_00_source_train_normal_{i:04d}_noAttribute.wav" for i in range(unattributed)]
    names += [f"pump/train/section_00_target_train_normal_{i:04d}_noAttribute.wav" for i in range(target)]
    return index_of(names)


def column(index, name):
    return np.array(index[name].to_pylist(), object)


def test_without_clusters_a_machine_without_attributes_is_one_class():
    index = train_index()
    labels, n = classes_of(index, index.slice(0, 0), np.zeros((index.num_rows, 3)), 0, seed=0)
    assert n == 3
    assert len(set(labels[column(index, "machine") == "pump"])) == 1


def test_clusters_are_found_for_each_domain_by_itself():
    index = train_index()
    pump, target = column(index, "machine") == "pump", column(index, "domain") == "target"
    rng = np.random.default_rng(0)
    hidden = rng.integers(3, size=index.num_rows)
    embeddings = np.eye(3)[hidden] + 0.05 * rng.normal(size=(index.num_rows, 3))
    labels, n = classes_of(index, index.slice(0, 0), embeddings, 3, seed=0)
    source = pump & ~target
    assert len(set(zip(labels[source], hidden[source], strict=True))) == 3  # one cluster for each hidden state
    assert not set(labels[source]) & set(labels[pump & target])
    assert len(set(labels[pump & target])) == 10 // MIN_CLUSTER
    assert sorted(set(labels)) == list(range(n))
    assert len(set(labels[~pump])) == 2


@pytest.mark.filterwarnings("error")
def test_copies_of_one_clip_are_one_class():
    index = train_index()
    labels, n = classes_of(index, index.slice(0, 0), np.ones((index.num_rows, 3)), 4, seed=0)
    assert n == 4  # two speeds of the fan, the pump's two domains
    assert len(labels) == index.num_rows


def test_generated_clips_have_the_class_of_their_attributes():
    index = train_index()
    names = [
        "fan/train/section_00_target_train_normal_0000_spd_1.wav",
        "pump/train/section_00_target_train_normal_0000_noAttribute.wav",
    ]
    more = index_of(names)
    labels, _ = classes_of(index, more, None, 0, seed=0)
    speeds = [dict(pairs).get("spd") for pairs in index["attributes"].to_pylist()]
    assert labels[-2] == labels[speeds.index("1")]
    assert labels[-1] == labels[speeds.index(None)]
    divided, n = classes_of(index, more, np.random.default_rng(0).normal(size=(index.num_rows, 3)), 4, seed=0)
    assert divided[-1] == -1
    assert divided[-2] == divided[speeds.index("1")]
    assert divided.max() == n - 1


def test_an_attribute_anywhere_in_a_section_keeps_it_undivided():
    index = pa.concat_tables([train_index(), index_of(["pump/train/section_00_source_train_normal_0999_spd_1.wav"])])
    _, n = classes_of(index, index.slice(0, 0), np.random.default_rng(0).normal(size=(index.num_rows, 3)), 4, 0)
    assert n == 4
