import numpy as np
import pyarrow as pa
import pytest

from branches.audio.cache import in_memory
from branches.data.dataset import index_of
from branches.spec import BranchSpec, ClassesSpec
from branches.training.training_set import classes_of, training_clips

FAN = [f"fan/train/section_00_source_train_normal_{i:04d}_spd_{i % 2}.wav" for i in range(8)]
PUMP = "pump/train/section_00_{}_train_normal_{:04d}_noAttribute.wav"
GENERATED = index_of(["fan/train/section_00_target_train_normal_0000_spd_1.wav", PUMP.format("target", 0)])
RNG = np.random.default_rng(0)


def classes(target=10, more=None, embeddings=None, attributes=(), **settings):
    """Labels of 8 clips of a fan at two speeds and 40 source and some target clips of a pump, and of more; how many."""
    paths = [*FAN, *(PUMP.format("source", i) for i in range(40)), *(PUMP.format("target", i) for i in range(target))]
    index = index_of([*paths, *attributes])
    assert embeddings is None or len(embeddings) == index.num_rows
    more = index.slice(0, 0) if more is None else more
    labels, unattributed = classes_of(index, more, embeddings, ClassesSpec.model_validate(settings), seed=0)
    assert set(np.flatnonzero(unattributed)) == (set() if attributes else set(labels[8 : index.num_rows]))
    return labels, len(unattributed)


def clusters(source, target):
    return {"source": source, "target": target}


def test_without_clusters_a_machine_without_attributes_is_one_class():
    labels, n = classes()
    assert (n, labels.tolist()) == (3, [0, 1] * 4 + [2] * 50)


def test_clusters_are_found_for_each_domain_by_itself():
    hidden = RNG.integers(3, size=58)
    embeddings = np.eye(3)[hidden] + 0.05 * RNG.normal(size=(58, 3))
    labels, n = classes(embeddings=embeddings, pseudo_labels=clusters(3, 3))
    assert labels[:8].tolist() == [0, 1] * 4
    assert len(set(zip(labels[8:48], hidden[8:48], strict=True))) == 3  # one cluster for each hidden state
    assert not set(labels[8:48]) & set(labels[48:])
    assert len(set(labels[48:])) == 2  # a cluster has five clips
    assert sorted(set(labels)) == list(range(n))


def test_each_domain_has_its_own_number_of_clusters_whatever_the_loudness_of_a_band():
    embeddings = RNG.normal(size=(68, 8, 3))
    labels, n = classes(20, embeddings=embeddings, pseudo_labels=clusters(7, 1))
    assert (len(set(labels[8:48])), len(set(labels[48:])), n) == (7, 1, 10)
    louder = embeddings * np.linspace(1, 100, 8)[:, None]
    assert np.array_equal(labels, classes(20, embeddings=louder, pseudo_labels=clusters(7, 1))[0])


@pytest.mark.filterwarnings("error")
def test_copies_of_one_clip_and_clips_of_a_section_with_attributes_are_not_divided():
    assert classes(embeddings=np.ones((58, 3)), pseudo_labels=clusters(4, 4))[1] == 4  # two speeds, two domains
    spoken = ["pump/train/section_00_source_train_normal_0999_spd_1.wav"]
    assert classes(embeddings=RNG.normal(size=(59, 3)), attributes=spoken, pseudo_labels=clusters(4, 4))[1] == 4


def test_generated_clips_have_the_class_of_their_attributes():
    assert classes(more=GENERATED)[0][-2:].tolist() == [1, 2]
    labels, n = classes(more=GENERATED, embeddings=RNG.normal(size=(58, 3)), pseudo_labels=clusters(4, 4))
    assert labels[-2:].tolist() == [1, -1]  # which cluster would it be?
    assert labels.max() == n - 1


def test_the_domain_may_be_part_of_the_class():
    labels, n = classes(more=GENERATED, domain=True)
    assert (n, labels.tolist()) == (5, [0, 1] * 4 + [3] * 40 + [4] * 10 + [2, 4])


# The training set


def clips_for(noise=None, supplemental=None, generated=None, channels=(2, 2, 1), length=3_000):
    """Of three training clips of two machines, behind a test clip; near, clip i holds i, and far −i."""
    index = index_of(["fan/test/section_00_0000.wav", *FAN[:2], PUMP.format("source", 0)])
    audio = in_memory([np.full((length, c), [i, -i][:c], np.float32) for i, c in enumerate((1, *channels))])
    spec = BranchSpec.model_validate({"augmentation": {"noise": noise}})
    return training_clips(audio, index, spec, generated=generated, noise=supplemental)


def test_test_clips_are_not_trained_on_and_generated_ones_stand_behind():
    clips = clips_for(generated=(GENERATED, np.zeros((2, 90, 128), np.float16)))
    assert (clips.rows.tolist(), clips.machines.tolist()) == ([1, 2, 3], ["fan", "fan", "pump"])
    assert clips.labels.tolist() == [0, 1, 2, 1, 2]
    assert clips.unattributed.tolist() == [False, False, True]
    assert (clips.n_classes, len(clips.generated), clips.noise) == (3, 2, None)
    # A signature is of clips and classes, and not of how many channels they have.
    others = [clips_for(), clips_for(length=3_001), clips_for(channels=(1, 1, 1))]
    assert len({clips.signature, *(other.signature for other in others)}) == 3


def test_noise_is_what_the_far_microphone_heard_of_the_machine_or_a_recording_of_its_own():
    far = clips_for(noise={}).noise
    drawn = [far.draw("fan", 7_000, RNG) for _ in range(20)]  # repeated, as it is shorter
    assert {len(noise) for noise in drawn} == {7_000}
    assert {float(value) for noise in drawn for value in set(noise)} == {-1.0, -2.0}
    assert far.draw("pump", 100, RNG) is None  # what a mono clip's only microphone hears is the machine
    ramp = np.stack([np.arange(3_000), np.zeros(3_000)], axis=1).astype(np.float32)
    recordings = in_memory([ramp]), pa.table({"machine": ["fan"]})
    own = clips_for(noise={"source": "supplemental"}, supplemental=recordings).noise
    assert {int(own.draw("fan", 2_999, RNG)[0]) for _ in range(20)} == {0, 1}
    assert own.draw("pump", 100, RNG) is None
