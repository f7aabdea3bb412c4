"""What stands in a system's folder, for whatever tables."""

import json

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from fusion.tasks import run_here
from orchestrator.fuse.result import fuse_into, headline, read_result, result_folders, rows_of_methods, system_folders
from orchestrator.ledger.folders import FUSED, HELD_OUT, RESULT
from orchestrator.plan import without
from scoring.calibration import calibrate
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import with_scores
from tests.tables import make_table


@st.composite
def tiny_systems(draw):
    """Score tables by name and a tree: few clips, cells without any, perfect, reversed and tied scores, no labels."""
    machines = ["fan", "pump", "saw"][: draw(st.integers(1, 3))]
    few, train = draw(st.integers(1, 3)), draw(st.integers(3, 5))
    labelled, rng = draw(st.booleans()), np.random.default_rng(draw(st.integers(0, 10_000)))
    separations = st.sampled_from([-30.0, 0.0, 1.0, 30.0])
    tests = make_table(machines, few, train)["split"].to_numpy() == "test"
    present, tables = ~tests | (rng.random(len(tests)) < 0.7), {}
    for seed, name in enumerate("abcd"[: draw(st.integers(1, 4))]):
        table = make_table(machines, few, train, draw(separations), seed, labelled)
        score = table["score"].to_numpy()
        score = np.where(tests & draw(st.booleans()), score.round(), score)
        tables[name] = with_scores(table, score, calibrate(table, score), {}).filter(present)
    alone, *seeds = tables
    return tables, {"single": {alone: [alone]}, **({"seeds": {"all": seeds}} if seeds else {})}


@settings(max_examples=8, deadline=None)
@given(system=tiny_systems())
def test_a_fusion_of_tiny_tables_never_warns_and_writes_strict_json(tmp_path_factory, system):
    """Warnings are errors in tests."""
    tables, tree = system
    folder = tmp_path_factory.mktemp("tiny")
    result = fuse_into(folder, "id", tables, tree, {}, {"system": "tiny", "branches": []}, run_here)
    assert json.loads((folder / "result.json").read_text(), parse_constant=lambda text: text * None) == result


def test_a_system_is_fused_again_if_anything_has_changed_and_only_then(pair, tmp_path, monkeypatch):
    folder, report = tmp_path / "systems" / "pair", tmp_path / "report.html"

    def is_made(**changed):
        """Whether the result is written, and its report removed."""
        report.touch()
        before = (folder / RESULT).stat().st_mtime_ns
        assert pair.fused(tmp_path, **changed) == read_result(folder)
        assert report.exists() == ((folder / RESULT).stat().st_mtime_ns == before)
        return not report.exists()

    first, held_out = pair.fused(tmp_path), (folder / HELD_OUT).read_bytes()
    assert not is_made()
    for damage in (lambda: (folder / FUSED).write_bytes(b"half"), *((folder / f).unlink for f in (FUSED, HELD_OUT))):
        damage()
        assert is_made()
    assert (read_result(folder), (folder / HELD_OUT).read_bytes()) == (first, held_out)
    name, table = next(iter(pair.tables.items()))
    other = with_scores(table, table["score"].to_numpy(), 2 * table["calibrated"].to_numpy(), {})
    assert is_made(tables={**pair.tables, name: other})
    assert [is_made(baseline=baseline) for baseline in (table, table, other)] == [True, False, True]
    monkeypatch.setattr("orchestrator.fuse.result.FUSION_VERSION", -1)
    assert is_made(baseline=other)


def test_a_result_has_its_baseline_its_omega_and_what_is_missing(pair, tmp_path):
    table = make_table(seed=5)
    result = pair.fused(tmp_path, baseline=table)
    baseline, delivered, omega = result["baseline"], result["delivered"], official_metrics(table).omega
    assert (baseline["name"], baseline["omega"], [*baseline["machines"]]) == (
        "log-mel baseline",
        omega,
        ["fan", "pump"],
    )
    members = [("one/a/0", "mahalanobis"), ("one/a/1", "mahalanobis"), ("one/b/0", "knn")]
    assert [(b["branch"], b["detector"]) for b in result["branches"]] == members
    assert (result["missing"], result["omega"]) == ([], delivered["lomo"])
    first, *methods, last = rows_of_methods(result)
    assert (first, [name for name, *_ in methods]) == (("log-mel baseline", omega, omega), [*result["methods"]])
    assert last == ("delivered", delivered["in_sample"], delivered["lomo"])
    alone = pair.fused(tmp_path, plan=without(pair.plan, {pair.names[-1]}))
    assert alone["missing"] == ["one/b/0"]
    assert alone["headline"].startswith("one/a alone delivered (")
    assert [name for name, *_ in rows_of_methods(alone)] == ["delivered"]  # all methods give the same
    # With fewer labels it claims less.
    one = pair.fused(tmp_path, pair.made(["fan"]))
    assert one["delivered"]["lomo"] is None
    assert one["omega"] == one["delivered"]["in_sample"] > 0
    none = pair.fused(tmp_path, pair.made(labelled=False))
    assert none["omega"] is none["branches"][0]["omega"] is none["delivered"]["in_sample"] is None
    assert {path.name for path in (tmp_path / "systems" / "pair").iterdir()} == {FUSED, RESULT}


def test_the_systems_of_a_run_are_found_by_name(tmp_path):
    one, two = folders = [tmp_path / "systems" / name for name in ("one", "two")]
    for folder in (tmp_path, two, one):  # the first as of `tutti fuse`
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULT).touch()
    assert system_folders(tmp_path) == result_folders(tmp_path) == folders
    assert system_folders(tmp_path, ["two", "one", "two"]) == [two, one]
    assert result_folders(one) == [one]
    with pytest.raises(InputError, match="no results in it"):
        system_folders(one)
    with pytest.raises(InputError, match="no result of system 'three'; there are one, two"):
        system_folders(tmp_path, ["one", "three"])


def test_a_sentence_says_why_the_delivered_figure_is_not_the_rows():
    row = {"in_sample": 64.0, "lomo": 61.84, "fixed": 63.5}
    delivered = {"method": "softmax", "strength": "0.1", "scale": "calibrated", "in_sample": 64.0, "lomo": 63.44}
    delivered |= {"why": "it does", "weights": {"a": {"x": 0.2, "y": 0.8}, "b": {"z": 0.0}}}
    result = {"transductive": False, "delivered": delivered, "methods": {"softmax": row}}
    assert headline(result) == (
        "softmax 0.1 weights of 2 of 3 configurations delivered (it does); LOMO 63.44 chooses method and strength "
        "without each machine, the row's 61.84 the strength alone, and with this strength it is 63.50"
    )
    row["lomo"] = 63.44
    assert headline(result) == "softmax 0.1 weights of 2 of 3 configurations delivered (it does)"
