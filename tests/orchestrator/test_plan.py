from pathlib import Path

import pyarrow as pa
import pytest

from branches.data.dataset import Dataset
from branches.spec import PROJECTION, BackboneSpec, BranchSpec
from orchestrator import plan as planning
from orchestrator.plan import Scoring, identity, make_plan, table_names, without
from orchestrator.preflight import check_models, resolve_file, with_resolved_files
from orchestrator.system import SystemSpec, load_system
from scoring.detectors import KnnSpec, MahalanobisSpec
from scoring.errors import InputError


def system(name="mine", **configurations):
    return SystemSpec.model_validate({"name": name, "subsystems": {"one": configurations}})


def dataset(*, train=("t0", "t1"), test=("e0",), machine="fan", more=()):
    """A data set of clips of these digests, and maybe of other machines."""
    rows = [("train", machine, digest) for digest in train] + [("test", machine, digest) for digest in test] + [*more]
    columns = dict(zip(("split", "machine", "digest"), zip(*rows, strict=True), strict=True))
    return Dataset(Path(), pa.table({k: list(v) for k, v in columns.items()}), pa.table({"digest": ["n0"]}))


def ids(*systems, data=None):
    return [branch.branch_id for branch in make_plan(systems, data or dataset()).branches if branch.systems]


def test_a_branch_of_two_systems_is_planned_once():
    both = make_plan([system("a", x={"seeds": [0, 1]}), system("b", y={"seeds": [1, 2]})], None)
    assert [branch.systems for branch in both.branches] == [("a",), ("a", "b"), ("b",)]
    assert both.trees["a"]["one"]["x"][1] == both.trees["b"]["one"]["y"][0]


def test_detectors_share_a_branch():
    plan = make_plan([system(x={}, y={"detector": {"name": "knn", "k": 2}})], None)
    (branch,) = plan.branches
    assert [scoring.detector for scoring in branch.scorings] == [MahalanobisSpec(), KnnSpec(k=2)]
    assert plan.trees["mine"]["one"] == {
        "x": [f"{branch.branch_id}/mahalanobis"],
        "y": [f"{branch.branch_id}/knn-k2"],
    }


def test_a_plan_on_a_data_set_has_the_baseline():
    of_system, baseline = make_plan([system(x={})], dataset()).branches
    assert (of_system.systems, baseline.systems) == (("mine",), ())
    plan = make_plan([load_system("solo")], dataset())
    assert plan.baseline in plan.trees["solo"]["statistics"]["log_mel"]  # the same branch, planned once
    assert len(plan.branches) == 2
    left = without(plan, {plan.baseline})
    assert (left.baseline, list(left.trees["solo"])) == ("", ["frozen"])
    assert without(plan, {table for branch in plan.branches for table in table_names(branch)}).trees == {"solo": {}}


def test_all_that_determines_weights_is_in_the_id_of_a_branch(monkeypatch):
    base = ids(system(x={}))
    assert ids(system("other", z={})) == base
    assert ids(system(x={"seeds": [1]})) != base
    assert ids(system(x={"branch": {"channel": "far"}})) != base
    assert ids(system(x={}), data=dataset(train=("t0", "t2"))) != base
    monkeypatch.setattr(planning, "TRAINING_VERSION", planning.TRAINING_VERSION + 1)
    assert ids(system(x={})) != base


def test_nothing_else_is(monkeypatch):
    base = ids(system(x={}))
    assert ids(system(x={"detector": "knn"})) == base
    assert ids(system(x={}), data=dataset(test=("e0", "e1"))) == base
    for name in ("EMBEDDING_VERSION", "SCORING_VERSION"):
        monkeypatch.setattr(planning, name, getattr(planning, name) + 1)
    assert ids(system(x={})) == base


def test_a_frozen_branch_rests_on_no_training_clips():
    trained, frozen = system(x={}), system(x={"branch": {"strategy": "frozen", "pooling": "mean"}})
    more = dataset(more=[("train", "pump", "p0"), ("test", "pump", "p1")])
    assert ids(frozen, data=more) == ids(frozen)
    assert ids(trained, data=more) != ids(trained)


def test_ids_are_the_same_with_every_python_and_every_release_of_the_same_versions():
    assert ids(
        system(x={}), system("y", y={"branch": {"objective": "softmax", "strategy": {"name": "lora", "rank": 8}}})
    ) == [
        "2f767e85bd6ed34f",
        "93b72b055695814d",
    ]


def test_an_identity_has_what_is_not_the_default_and_the_name_of_each_choice():
    assert identity(BranchSpec()) == {}
    assert identity(BranchSpec(objective="softmax", strategy={"name": "lora", "rank": 8})) == {
        "objective": {"name": "softmax"},
        "strategy": {"name": "lora", "rank": 8},
    }
    assert identity(BranchSpec(augmentation={"mixup": {}})) == {"augmentation": {"mixup": {}}}
    assert identity(BackboneSpec(path="a.pt", sha256="0" * 64)) == {"sha256": "0" * 64}


def test_a_table_is_identified_by_embeddings_detector_version_and_clips(monkeypatch):
    def tables(data=None, **configuration):
        branch, _ = make_plan([system(x=configuration)], data or dataset()).branches
        return branch.tables

    base = tables()
    assert base.keys() == {"mahalanobis"}
    assert tables() == base
    assert tables(dataset(test=("e0", "e1"))) != base
    assert set(tables(detector="knn").values()).isdisjoint(base.values())
    for name in ("EMBEDDING_VERSION", "SCORING_VERSION"):
        with monkeypatch.context() as patch:
            patch.setattr(planning, name, getattr(planning, name) + 1)
            assert tables() != base


def test_an_embedding_is_part_of_the_table_and_not_of_the_branch():
    bands = {"embedding": {"pooling": "band_mean"}, "detector": "band_knn"}
    sharp = {"embedding": {"layers": [-1, 3], "pooling": {"name": "relative_deviation", "gamma": 4}}}
    branch, _ = make_plan([system(x={}, y=bands, z=sharp, w={**sharp, "detector": "knn"})], dataset()).branches
    name = "patches-layers-1_3-poolingrelative_deviation-pooling_gamma4.0"
    assert list(branch.tables) == ["mahalanobis", "patches.band_knn", f"{name}.mahalanobis", f"{name}.knn"]
    assert len(set(branch.tables.values())) == 4
    assert len(branch.embeddings) == 3
    alone, _ = make_plan([system(x={})], dataset()).branches
    assert branch.branch_id == alone.branch_id
    assert branch.tables["mahalanobis"] == alone.tables["mahalanobis"]


def test_a_frozen_backbone_is_one_branch_however_many_embeddings_are_taken():
    frozen = {"strategy": "frozen"}
    layered = {"strategy": "frozen", "pooling": "band_mean", "backbone": {"layers": [1, 2]}}
    sharp = {"pooling": {"name": "relative_deviation"}}
    plan = make_plan([system(x={"branch": frozen, "embedding": sharp}, y={"branch": layered, "embedding": {}})], None)
    (branch,) = plan.branches
    assert branch.spec.backbone.layers == (-1,)
    assert [embedding.layers for embedding in branch.embeddings] == [(-1,), (1, 2)]


def test_seeds_of_one_configuration_share_its_id():
    first, second = make_plan([system(x={"seeds": [0, 1]})], None).branches
    assert first.config_id == second.config_id
    assert first.branch_id != second.branch_id


def test_names_of_tables_say_what_is_not_the_default():
    def name(detector):
        return Scoring(PROJECTION, detector).name

    assert [name(d) for d in (MahalanobisSpec(), KnnSpec(), KnnSpec(k=4))] == ["mahalanobis", "knn", "knn-k4"]
    fitted = KnnSpec(banks="pooled", density={"name": "difference", "weight": "fitted"})
    assert name(fitted) == "knn-bankspooled-densitydifference-density_weightfitted"
    assert name(KnnSpec(density="difference")) == "knn-densitydifference"


@pytest.fixture
def checkpoint(tmp_path):
    from branches.beats import load_beats, save_beats

    save_beats(load_beats("tiny"), tmp_path / "tiny.pt")
    return tmp_path / "tiny.pt"


def test_a_checkpoint_counts_by_its_content(checkpoint, tmp_path):
    first = with_resolved_files(load_system("s1", backbone=str(checkpoint)))
    moved = checkpoint.rename(tmp_path / "moved.pt")
    second = with_resolved_files(load_system("s1", backbone=str(moved)))
    assert first != second
    assert ids(first) == ids(second)


def test_a_checkpoint_s_uri_is_its_path(checkpoint, tmp_path):
    moved = checkpoint.rename(tmp_path / "100 % mine.pt")
    uri, path = (resolve_file(BackboneSpec(path=p)) for p in (moved.as_uri(), str(moved)))
    assert uri == path


def test_a_checkpoint_that_cannot_be_used_is_named(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"none.pt: no such file.*--backbone FILE"):
        resolve_file(BackboneSpec(path=str(tmp_path / "none.pt")))
    with pytest.raises(InputError, match="has sha256"):
        resolve_file(BackboneSpec(path=str(checkpoint), sha256="0" * 8))
    (tmp_path / "text.pt").write_text("hello")
    plan = make_plan([with_resolved_files(load_system("s1", backbone=str(tmp_path / "text.pt")))], None)
    with pytest.raises(InputError, match="is not a BEATs checkpoint"):
        check_models(plan.branches)
