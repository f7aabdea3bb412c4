"""The numbers of the whole chain stay what they are, unless a change is meant to alter them.

Scores are compared to a hundredth of their spread: more than processors differ by, less than any change of a
recipe. Omegas count pairs of clips, of which rounding may swap one or two.
"""

import json

import pytest

from tests.golden.figures import GOLDEN, golden_run

pytestmark = pytest.mark.slow

REMEDY = "numbers have changed: if they should, write golden.json anew and say why"
SCORES = 0.01  # of a column's standard deviation
OMEGA = 1.0  # per cent


@pytest.fixture(scope="module")
def now(tmp_path_factory):
    return golden_run(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def then():
    return json.loads(GOLDEN.read_text())


def test_score_tables(now, then):
    assert now["tables"].keys() == then["tables"].keys()
    for name, table in then["tables"].items():
        assert now["tables"][name]["omega"] == pytest.approx(table["omega"], abs=OMEGA), f"{name}: {REMEDY}"
        assert_like(now["tables"][name], table, name)


def test_fusion(now, then):
    assert now["methods"].keys() == then["methods"].keys()
    for name, omegas in then["methods"].items():
        assert now["methods"][name] == pytest.approx(omegas, abs=OMEGA), f"{name}: {REMEDY}"
    for subsystem, weights in then["weights"].items():
        assert now["weights"][subsystem] == pytest.approx(weights, abs=0.01), f"{subsystem}: {REMEDY}"
    assert_like(now["fused"], then["fused"], "fused")


def test_submission(now, then):
    assert now["submission"].keys() == then["submission"].keys()
    spread = then["fused"]["calibrated"][1]
    for name, values in then["submission"].items():
        if name.startswith("decision"):
            assert now["submission"][name] == values, f"{name}: {REMEDY}"
        else:
            assert now["submission"][name] == pytest.approx(values, abs=SCORES * spread), f"{name}: {REMEDY}"


def assert_like(now, then, name):
    for column in ("score", "calibrated"):
        tolerance = SCORES * then[column][1]
        assert now[column] == pytest.approx(then[column], abs=tolerance), f"{name} {column}: {REMEDY}"
