import numpy as np
import pyarrow as pa
import pytest

from branches.data.dataset import index_of
from branches.spec import BranchSpec, ClassesSpec
from branches.training.training_set import MIN_CLUSTER, classes_of


def train_index(unattributed=40, target=10):
    names = [f"fan/train/section_00_source_train_normal_{i:04d}_spd_{i % 2}.wav" for i in range(8)]
    names += [f"pump/train/section_00_source_train_normal_{i:04d}_noAttribute.wav" for i in range(unattributed)]
    names += [f"pump/train/section_00_target_train_normal_{i:04d}_noAttribute.wav" for i in range(target)]
    return index_of(names)


def labels_of(train, more, embeddings, classes, seed):
    """Labels, and how many classes there are."""
    labels, unattributed = classes_of(train, more, embeddings, classes, seed)
    bare = column(train, "machine") == "pump"
    assert set(np.flatnonzero(unattributed)) == set(labels[: len(bare)][bare]) - set(labels[: len(bare)][~bare])
    return labels, len(unattributed)


def clusters(pseudo_labels):
    each = {"source": pseudo_labels, "target": pseudo_labels} if isinstance(pseudo_labels, int) else pseudo_labels
    return ClassesSpec.model_validate({"pseudo_labels": each})


def column(index, name):
    return np.array(index[name].to_pylist(), object)


def test_without_clusters_a_machine_without_attributes_is_one_class():
    index = train_index()
    labels, n = labels_of(index, index.slice(0, 0), None, ClassesSpec(), seed=0)
    assert n == 3
    assert len(set(labels[column(index, "machine") == "pump"])) == 1


def test_clusters_are_found_for_each_domain_by_itself():
    index = train_index()
    pump, target = column(index, "machine") == "pump", column(index, "domain") == "target"
    rng = np.random.default_rng(0)
    hidden = rng.integers(3, size=index.num_rows)
    embeddings = np.eye(3)[hidden] + 0.05 * rng.normal(size=(index.num_rows, 3))
    labels, n = labels_of(index, index.slice(0, 0), embeddings, clusters(3), seed=0)
    source = pump & ~target
    assert len(set(zip(labels[source], hidden[source], strict=True))) == 3  # one cluster for each hidden state
    assert not set(labels[source]) & set(labels[pump & target])
    assert len(set(labels[pump & target])) == 10 // MIN_CLUSTER
    assert sorted(set(labels)) == list(range(n))
    assert len(set(labels[~pump])) == 2


@pytest.mark.filterwarnings("error")
def test_copies_of_one_clip_are_one_class():
    index = train_index()
    labels, n = labels_of(index, index.slice(0, 0), np.ones((index.num_rows, 3)), clusters(4), seed=0)
    assert n == 4  # two speeds of the fan, the pump's two domains
    assert len(labels) == index.num_rows


def test_generated_clips_have_the_class_of_their_attributes():
    index = train_index()
    names = [
        "fan/train/section_00_target_train_normal_0000_spd_1.wav",
        "pump/train/section_00_target_train_normal_0000_noAttribute.wav",
    ]
    more = index_of(names)
    labels, _ = labels_of(index, more, None, ClassesSpec(), seed=0)
    speeds = [dict(pairs).get("spd") for pairs in index["attributes"].to_pylist()]
    assert labels[-2] == labels[speeds.index("1")]
    assert labels[-1] == labels[speeds.index(None)]
    divided, n = labels_of(index, more, np.random.default_rng(0).normal(size=(index.num_rows, 3)), clusters(4), seed=0)
    assert divided[-1] == -1
    assert divided[-2] == divided[speeds.index("1")]
    assert divided.max() == n - 1


def test_an_attribute_anywhere_in_a_section_keeps_it_undivided():
    index = pa.concat_tables([train_index(), index_of(["pump/train/section_00_source_train_normal_0999_spd_1.wav"])])
    embeddings = np.random.default_rng(0).normal(size=(index.num_rows, 3))
    _, unattributed = classes_of(index, index.slice(0, 0), embeddings, clusters(4), seed=0)
    assert unattributed.tolist() == [False] * 4


def test_each_domain_has_its_own_number_of_clusters():
    index = train_index(target=20)
    pump, target = column(index, "machine") == "pump", column(index, "domain") == "target"
    embeddings = np.random.default_rng(0).normal(size=(index.num_rows, 8, 3))  # by band
    labels, n = labels_of(index, index.slice(0, 0), embeddings, clusters({"source": 7, "target": 1}), seed=0)
    assert len(set(labels[pump & ~target])) == 7
    assert len(set(labels[pump & target])) == 1
    assert n == 2 + 7 + 1


def test_the_loudness_of_a_band_has_no_say_in_the_clusters():
    index = train_index()
    embeddings = np.random.default_rng(0).normal(size=(index.num_rows, 8, 3))
    louder = embeddings * np.linspace(1, 100, 8)[:, None]
    made = [labels_of(index, index.slice(0, 0), e, clusters(3), seed=0)[0] for e in (embeddings, louder)]
    assert np.array_equal(*made)


def test_the_domain_may_be_part_of_the_class():
    names = [
        f"fan/train/section_00_{d}_train_normal_{i:04d}_spd_{i % 2}.wav" for d in ("source", "target") for i in range(4)
    ]
    index = pa.concat_tables([index_of(names), train_index()])
    more = index_of(["fan/train/section_00_target_train_normal_0000_spd_1.wav"])
    _, plain = labels_of(index, more, None, ClassesSpec(), seed=0)
    labels, n = labels_of(index, more, None, ClassesSpec(domain=True), seed=0)
    assert (plain, n) == (3, 2 * 2 + 2)
    fan = column(index, "machine") == "fan"
    domains, speeds = column(index, "domain"), [dict(pairs).get("spd") for pairs in index["attributes"].to_pylist()]
    keys = {(d, s): label for d, s, label, f in zip(domains, speeds, labels[:-1], fan, strict=True) if f}
    assert labels[-1] == keys["target", "1"]
    assert len(set(keys.values())) == 4


def test_what_is_clustered_may_be_another_channel_and_pooling():
    pseudo = {"source": 7, "target": 1, "channel": "cancel", "pooling": "band_mean"}
    spec = BranchSpec.model_validate({"classes": {"pseudo_labels": pseudo}})
    ((frozen, embedding),) = spec.frozen_inputs([])
    assert (frozen.channel, embedding.pooling.name, frozen.is_frozen) == ("cancel", "band_mean", True)
