"""Which branches a run has, and what they are known by."""

from pathlib import Path

import pyarrow as pa

from branches.data.dataset import Dataset
from branches.spec import BackboneSpec, BranchSpec
from orchestrator import plan as planning
from orchestrator.plan import identity, make_plan, table_names, versions, without
from orchestrator.system import SystemSpec, load_system

FROZEN = {"strategy": "frozen", "pooling": "mean"}


def system(name="mine", **configurations):
    return SystemSpec.model_validate({"name": name, "subsystems": {"one": configurations}})


def dataset(train=("t0", "t1"), test=("e0",), more=()):
    """A data set of clips of these digests, and maybe of other machines."""
    rows = [("train", "fan", digest) for digest in train] + [("test", "fan", digest) for digest in test] + [*more]
    clips = pa.Table.from_pylist([dict(zip(("split", "machine", "digest"), row, strict=True)) for row in rows])
    return Dataset(Path(), clips, pa.table({"digest": ["n0"]}))


def branch(data=None, **configuration):
    """The one branch of a system on a data set, beside the baseline."""
    found, _ = make_plan([system(x=configuration)], data or dataset()).branches
    return found


def raised(monkeypatch, value):
    """What a value is with one version after another one higher than it is."""
    for name in ("TRAINING_VERSION", "EMBEDDING_VERSION", "SCORING_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(planning, name, getattr(planning, name) + 1)
            yield value()


def test_a_branch_of_two_systems_is_planned_once_and_on_a_data_set_the_baseline_too():
    both = make_plan([system("a", x={"seeds": [0, 1]}), system("b", y={"seeds": [1, 2]})], None)
    assert [(branch.name, branch.systems, branch.spec.seed) for branch in both.branches] == [
        *(("one/x/0", ("a",), 0), ("one/x/1", ("a", "b"), 1), ("one/y/2", ("b",), 2))
    ]
    assert len({branch.config_id for branch in both.branches}) == 1
    assert both.trees["a"]["one"]["x"][1] == both.trees["b"]["one"]["y"][0]
    assert [branch.systems for branch in make_plan([system(x={})], dataset()).branches] == [("mine",), ()]
    plan = make_plan([load_system("solo")], dataset())
    assert plan.baseline in plan.trees["solo"]["statistics"]["log_mel"]
    assert len(plan.branches) == 2
    left = without(plan, {plan.baseline})
    assert (left.baseline, list(left.trees["solo"])) == ("", ["frozen"])
    assert without(plan, {table for branch in plan.branches for table in table_names(branch)}).trees == {"solo": {}}


def test_a_branch_is_known_by_all_that_determines_its_weights_and_by_nothing_else(monkeypatch):
    base = branch().branch_id
    assert branch(detector="knn").branch_id == base
    assert branch(dataset(test=("e0", "e1"))).branch_id == base
    more = dataset(more=[("train", "pump", "p0"), ("test", "pump", "p1")])
    assert branch(more, branch=FROZEN).branch_id == branch(branch=FROZEN).branch_id  # which rests on no clips
    others = [branch(more), branch(seeds=[1]), branch(branch={"channel": "far"}), branch(dataset(train=("t0", "t2")))]
    assert base not in {other.branch_id for other in others}
    assert [found == base for found in raised(monkeypatch, lambda: branch().branch_id)] == [False, True, True]


def test_embeddings_and_tables_are_known_by_what_determines_them(monkeypatch):
    def known(**other):
        found = branch(**other)
        return found.embeddings_id, *found.tables.values()

    base = known()
    for other in ({"data": dataset(test=("e0", "e1"))}, {"seeds": [1]}):
        assert set(known(**other)).isdisjoint(base)
    assert [a == b for a, b in zip(known(detector="knn"), base, strict=True)] == [True, False]
    kept = [[a == b for a, b in zip(found, base, strict=True)] for found in raised(monkeypatch, known)]
    assert kept == [[False, False], [False, False], [True, False]]
    assert versions() not in list(raised(monkeypatch, versions))  # so that nodes with another one are told


def test_ids_are_the_same_with_every_release_of_the_same_versions_and_count_what_is_not_the_default():
    lora = {"objective": {"name": "softmax"}, "strategy": {"name": "lora", "rank": 8}}
    assert [branch().branch_id, branch(branch=lora).branch_id] == ["2f767e85bd6ed34f", "93b72b055695814d"]
    assert identity(BranchSpec()) == {}
    assert identity(BranchSpec.model_validate(lora)) == lora
    assert identity(BranchSpec(augmentation={"mixup": {}})) == {"augmentation": {"mixup": {}}}
    assert identity(BackboneSpec(path="a.pt", sha256="0" * 64)) == {"sha256": "0" * 64}


def test_detectors_and_embeddings_share_a_branch_and_have_tables_named_by_what_is_not_the_default():
    bands = {"embedding": {"pooling": "band_mean"}, "detector": "band_knn"}
    sharp = {"embedding": {"layers": [-1, 3], "pooling": {"name": "relative_deviation", "gamma": 4}}}
    plan = make_plan([system(x={}, y=bands, z=sharp, w={**sharp, "detector": {"name": "knn", "k": 4}})], dataset())
    several, _ = plan.branches
    name = "patches-layers-1_3-poolingrelative_deviation-pooling_gamma4.0"
    assert list(several.tables) == ["mahalanobis", "patches.band_knn", f"{name}.mahalanobis", f"{name}.knn-k4"]
    trees = {key: [f"{several.branch_id}/{table}"] for key, table in zip("xyzw", several.tables, strict=True)}
    assert plan.trees == {"mine": {"one": trees}}
    assert (len(set(several.tables.values())), len(several.embeddings)) == (4, 3)
    assert several.branch_id == branch().branch_id
    assert several.tables.items() > branch().tables.items()


def test_a_frozen_backbone_is_one_branch_however_many_embeddings_are_taken():
    layered = {"strategy": "frozen", "pooling": "band_mean", "backbone": {"layers": [1, 2]}}
    sharp = {"pooling": {"name": "relative_deviation"}}
    (branch,) = make_plan([system(x={"branch": FROZEN, "embedding": sharp}, y={"branch": layered})], None).branches
    assert branch.spec.backbone.layers == (-1,)
    assert [embedding.layers for embedding in branch.embeddings] == [(-1,), (1, 2)]
