import pytest

from branches.spec import BackboneSpec
from orchestrator import plan as planning
from orchestrator.plan import code_version, detector_id, make_plan
from orchestrator.preflight import check_models, resolve_file, with_resolved_files
from orchestrator.spec import SystemSpec, load_system
from scoring.detectors import KnnSpec, MahalanobisSpec
from scoring.errors import InputError


def system(name="mine", **configurations):
    return SystemSpec.model_validate({"name": name, "subsystems": {"one": configurations}})


def ids(*systems, data="data"):
    return [branch.branch_id for branch in make_plan(systems, data).branches]


def test_a_branch_of_two_systems_is_planned_once():
    both = make_plan([system("a", x={"seeds": [0, 1]}), system("b", y={"seeds": [1, 2]})], "data")
    assert [branch.systems for branch in both.branches] == [("a",), ("a", "b"), ("b",)]
    assert both.trees["a"]["one"]["x"][1] == both.trees["b"]["one"]["y"][0]


def test_detectors_share_a_branch():
    plan = make_plan([system(x={}, y={"detector": {"name": "knn", "k": 2}})], "data")
    (branch,) = plan.branches
    assert branch.detectors == (MahalanobisSpec(), KnnSpec(k=2))
    assert plan.trees["mine"]["one"] == {
        "x": [f"{branch.branch_id}/mahalanobis"],
        "y": [f"{branch.branch_id}/knn-k2"],
    }


def test_all_that_determines_scores_is_in_the_id(monkeypatch):
    base = ids(system(x={}))
    assert ids(system("other", z={})) == base
    assert ids(system(x={"seeds": [1]})) != base
    assert ids(system(x={"branch": {"channel": "far"}})) != base
    assert ids(system(x={}), data="other data") != base
    monkeypatch.setattr(planning, "code_version", lambda *packages: "other code")
    assert ids(system(x={})) != base


def test_seeds_of_one_configuration_share_its_id():
    first, second = make_plan([system(x={"seeds": [0, 1]})], "data").branches
    assert first.config_id == second.config_id
    assert first.branch_id != second.branch_id


def test_the_code_version_ignores_comments_and_docstrings(tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "_ROOT", tmp_path)
    (tmp_path / "package").mkdir()
    file = tmp_path / "package" / "module.py"

    def version(text):
        code_version.cache_clear()
        file.write_text(text)
        return code_version("package")

    first = version('"""Module."""\ndef f(x):\n    """Doc."""\n    return x + 1\n')
    assert version("# comment\ndef f(x):\n    return (x\n        + 1)  # why\n") == first
    assert version("def f(x):\n    return x + 2\n") != first
    code_version.cache_clear()


def test_detector_names():
    assert [detector_id(d) for d in (MahalanobisSpec(), KnnSpec(), KnnSpec(k=4))] == ["mahalanobis", "knn", "knn-k4"]


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


def test_a_checkpoint_that_cannot_be_used_is_named(checkpoint, tmp_path):
    with pytest.raises(InputError, match=r"none.pt: no such file.*--backbone FILE"):
        resolve_file(BackboneSpec(path=str(tmp_path / "none.pt")))
    with pytest.raises(InputError, match="has sha256"):
        resolve_file(BackboneSpec(path=str(checkpoint), sha256="0" * 8))
    (tmp_path / "text.pt").write_text("hello")
    plan = make_plan([with_resolved_files(load_system("s1", backbone=str(tmp_path / "text.pt")))], "data")
    with pytest.raises(InputError, match="is not a BEATs checkpoint"):
        check_models(plan.branches)
