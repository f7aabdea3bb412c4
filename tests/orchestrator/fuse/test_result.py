"""What stands in a system's folder, for whatever tables."""

import json

import hypothesis.strategies as st
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings

from branches.data.dataset import Dataset
from fusion.hierarchy import tables_of
from fusion.tasks import run_here
from orchestrator.fuse.result import fuse_into, fused_system, headline, read_result
from orchestrator.plan import make_plan
from orchestrator.system import load_system
from scoring.calibration import calibrate
from scoring.metrics import official_metrics
from scoring.table import SCHEMA, conform, with_scores
from tests.orchestrator.package_case import clip_paths, write_names
from tests.tables import make_table


@st.composite
def tiny_systems(draw):
    """Score tables by name and a tree: few clips, cells without any, perfect, reversed and tied scores."""
    few = st.integers(0, 3)
    rows = []
    for machine in ("fan", "pump", "valve")[: draw(st.integers(1, 3))]:
        rows += [(machine, 0, f"{i}.wav", "train", "source", "normal") for i in range(draw(st.integers(3, 5)))]
        hidden = draw(st.integers(0, 5)) == 0
        for domain in ("source", "target"):
            for condition in ("normal", "anomaly"):
                label = None if hidden else condition
                names = [f"{domain}_{condition}_{i}.wav" for i in range(draw(few))]
                rows += [(machine, 0, name, "test", domain, label) for name in names]
    columns = list(zip(*rows, strict=True))
    machines, splits, labels = (np.array(columns[i], object) for i in (0, 3, 5))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    tables = {}
    for name in "abcd"[: draw(st.integers(1, 4))]:
        score = rng.normal(size=len(rows))
        for machine in dict.fromkeys(columns[0]):
            score[(machines == machine) & (labels == "anomaly")] += draw(st.sampled_from([-30, 0, 1, 30]))
        if draw(st.booleans()):
            score[splits == "test"] = score[splits == "test"].round()
        arrays = [pa.array(c, t) for c, t in zip([*columns, score, score], SCHEMA.types, strict=True)]
        table = conform(pa.table(arrays, schema=SCHEMA))
        score = table["score"].to_numpy()  # in the table's order
        tables[name] = with_scores(table, score, calibrate(table, score), {})
    names = list(tables)
    alone = draw(st.integers(1, len(names)))
    tree = {"singles": {name: [name] for name in names[:alone]}}
    return tables, {**tree, **({"seeds": {"all": names[alone:]}} if names[alone:] else {})}


def no_number(text):
    raise AssertionError(f"{text} is not JSON")


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(system=tiny_systems())
def test_a_fusion_of_tiny_tables_never_warns_and_writes_strict_json(tmp_path_factory, system):
    """Warnings are errors in tests."""
    tables, tree = system
    folder = tmp_path_factory.mktemp("tiny")
    result = fuse_into(folder, "id", tables, tree, {}, {"system": "tiny", "branches": []}, run_here)
    assert json.loads((folder / "result.json").read_text(), parse_constant=no_number) == result


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """Fuses a system of two configurations into a run folder, with a baseline or without."""
    root = tmp_path_factory.mktemp("planned")
    write_names(root / "data", clip_paths("fan", labelled=True))
    (root / "pair.yaml").write_text("name: pair\nsubsystems: {one: {a: {}, b: {branch: {objective: softmax}}}}\n")
    dataset, system = Dataset.read(root / "data"), load_system(str(root / "pair.yaml"), "tiny")
    plan = make_plan([system], dataset)
    tables = {name: make_table(seed=i) for i, name in enumerate(tables_of(plan.trees["pair"]))}

    def fused(out, baseline=None):
        named = baseline and (plan.baseline, baseline)
        return fused_system(system, dataset, plan, tables, out / "systems" / "pair", run_here, named)

    return fused


def test_a_system_is_fused_once_and_again_if_its_table_is_damaged(planned, tmp_path):
    first = planned(tmp_path)
    folder = tmp_path / "systems" / "pair"
    written = (folder / "result.json").stat().st_mtime_ns
    assert planned(tmp_path) == first == read_result(folder)
    assert (folder / "result.json").stat().st_mtime_ns == written
    (folder / "fused.parquet").write_bytes(b"half")
    assert planned(tmp_path) == first
    assert (folder / "result.json").stat().st_mtime_ns > written


def test_a_baseline_that_is_scored_later_reaches_the_result(planned, tmp_path):
    assert planned(tmp_path)["baseline"] is None
    report = tmp_path / "report.html"
    report.touch()
    assert planned(tmp_path)["baseline"] is None
    assert report.exists()
    for seed in (5, 6):
        table = make_table(seed=seed)
        baseline = planned(tmp_path, table)["baseline"]
        assert baseline["name"] == "log-mel baseline"
        assert baseline["omega"] == official_metrics(table).omega
        assert baseline["machines"].keys() == {"fan", "pump"}
        assert not report.exists()  # drawn without it


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
    assert "LOMO" not in headline(result)
    delivered["weights"] = {"a": {"x": 0.0, "y": 1.0}, "b": {"z": 0.0}}
    assert headline(result) == "a/y alone delivered (it does)"
