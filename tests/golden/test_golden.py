"""The numbers of the whole chain stay what they are, unless a version says that they have changed.

Scores are compared to a hundredth of their spread: more than processors differ by, less than any change of a
recipe. Omegas count pairs of clips, of which rounding may swap one or two.
"""

import json

import pytest

from tests.golden.figures import GOLDEN, defaults, figures, versions

pytestmark = pytest.mark.slow(seconds=60)  # of the run that many tests share

REMEDY = "numbers have changed. If they should, raise {} and write golden.json anew (python -m tests.golden.figures)"
TABLES = REMEDY.format(
    "TRAINING_VERSION (branches/spec.py) if weights are others, else EMBEDDING_VERSION beside it if embeddings are, "
    "else SCORING_VERSION (scoring/detectors.py)"
)
FUSION = REMEDY.format("FUSION_VERSION (fusion/search.py)")
SCORES = 0.01  # of a column's standard deviation
OMEGA = 1.0  # per cent


@pytest.fixture(scope="module")
def now(run, tmp_path_factory):
    return figures(run, tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def then():
    return json.loads(GOLDEN.read_text())


def test_golden_numbers_are_of_these_versions(then):
    assert versions() == then["versions"], "a version was raised: write golden.json anew"


def test_no_default_has_changed(then):
    """A setting may be added; one whose default changes makes other numbers under the same identity."""
    now = defaults()
    changed = {name for name, value in then["defaults"].items() if name in now and not same(now[name], value)}
    assert not changed, REMEDY.format("TRAINING_VERSION or SCORING_VERSION")


def same(now, then):
    """Whether what both have is equal: of settings within settings some may be added or gone, too."""
    if isinstance(now, dict) and isinstance(then, dict):
        return all(same(now[key], then[key]) for key in now.keys() & then.keys())
    return now == then


def test_score_tables(now, then):
    assert now["tables"].keys() == then["tables"].keys()
    for name, table in then["tables"].items():
        assert now["tables"][name]["omega"] == pytest.approx(table["omega"], abs=OMEGA), f"{name}: {TABLES}"
        assert_like(now["tables"][name], table, f"{name}: {TABLES}")


def test_fusion(now, then):
    assert now["methods"].keys() == then["methods"].keys()
    for name, omegas in then["methods"].items():
        assert now["methods"][name] == pytest.approx(omegas, abs=OMEGA), f"{name}: {FUSION}"
    for subsystem, weights in then["weights"].items():
        assert now["weights"][subsystem] == pytest.approx(weights, abs=0.01), f"{subsystem}: {FUSION}"


def test_fused_scores(now, then):
    assert_like(now["fused"], then["fused"], f"fused: {FUSION}")


def test_submission(now, then):
    assert now["submission"].keys() == then["submission"].keys()
    spread = then["fused"]["calibrated"][1]
    for name, values in then["submission"].items():
        if name.startswith("decision"):
            assert now["submission"][name] == values, f"{name}: {FUSION}"
        else:
            assert now["submission"][name] == pytest.approx(values, abs=SCORES * spread), f"{name}: {FUSION}"


def assert_like(now, then, name):
    for column in ("score", "calibrated"):
        tolerance = SCORES * then[column][1]
        assert now[column] == pytest.approx(then[column], abs=tolerance), f"{column} of {name}"


@pytest.mark.parametrize("command", json.loads(GOLDEN.read_text())["outputs"])
def test_what_commands_print_keeps_its_form(now, then, command):
    """Scripts rely on it: a key may be added, none goes or changes its type."""
    assert lost(now["outputs"][command], then["outputs"][command]) == []


def lost(now, then, place=""):
    """Places in a JSON value whose form is not what it was."""
    if isinstance(then, dict) and isinstance(now, dict):
        return [p for key, form in then.items() for p in lost(now.get(key), form, f"{place}.{key}")]
    if isinstance(then, list) and isinstance(now, list):
        return [p for form in then for p in lost((now or [None])[0], form, f"{place}[]")]
    return [] if now == then else [f"{place}: {then} is now {now}"]
