"""From a run to the challenge's files and the package for it."""

import json
import shutil
import zipfile

import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from orchestrator.submission.check import check_package
from orchestrator.submission.files import write_submission
from orchestrator.submission.package import make_package
from scoring.decisions import thresholds
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import read_table
from tests.commands import tutti_here
from tests.orchestrator.package_case import AUTHORS, LABEL, clip_paths, fused_table, write_result
from tests.tables import make_table

FILES = [f"{kind}_{m}_section_00_test.csv" for kind in ("anomaly_score", "decision_result") for m in ("fan", "pump")]


def test_scores_and_decisions_of_every_test_clip(tmp_path):
    """A clip is decided an anomaly if its score is above the threshold, not if it is the threshold."""
    table = make_table(labelled=False)
    limits = thresholds(table)
    first = table["split"].to_pylist().index("test")
    score = [limits["fan", 0] if i == first else value for i, value in enumerate(table["score"].to_pylist())]
    table = table.set_column(table.schema.get_field_index("score"), "score", pa.array(score))
    write_submission(table, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == FILES
    for machine in ("fan", "pump"):
        wanted = [r for r in table.to_pylist() if r["machine"] == machine and r["split"] == "test"]
        scores, decisions = (
            [line.split(",") for line in (tmp_path / name).read_text().splitlines()]
            for name in FILES
            if machine in name
        )
        assert [(name, float(value)) for name, value in scores] == [(r["clip"], r["score"]) for r in wanted]
        assert decisions == [[r["clip"], str(int(r["score"] > limits[machine, 0]))] for r in wanted]
        assert {decision for _, decision in decisions} == {"0", "1"}


def test_an_earlier_submission_goes_when_the_new_one_is_there_and_not_before(tmp_path):
    table = make_table()
    write_submission(table, tmp_path)
    (tmp_path / "notes.csv").touch()
    fan = table.filter(pc.equal(table["machine"], "fan"))
    others = fan.set_column(0, "machine", [["gearbox"] * fan.num_rows])
    blocked = tmp_path / "decision_result_gearbox_section_00_test.csv"
    blocked.mkdir()
    with pytest.raises(IsADirectoryError):
        write_submission(others, tmp_path)
    assert {*FILES, "notes.csv"} < {path.name for path in tmp_path.iterdir()}
    blocked.rmdir()
    write_submission(others, tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"anomaly_score_gearbox_section_00_test.csv", blocked.name, "notes.csv"}


@pytest.fixture
def run(case, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(case.run, tmp_path / "run", ignore=shutil.ignore_patterns("package"))


def changed(run, system, **values):
    """A system's result with other values."""
    path = run / "systems" / system / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def copied_system(run, name):
    shutil.copytree(run / "systems" / "s1", run / "systems" / name)


def test_the_zip_file_holds_what_is_in_the_folder_in_the_order_of_the_systems(case, tmp_path):
    made, again = (make_package(case.run, ["s2", "s1"], tmp_path / out, LABEL, case.authors) for out in "ab")
    assert made.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(made) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    expected = [f"task2/{LABEL}_{n}/{name}" for n in (1, 2) for name in (f"{LABEL}_{n}.meta.yaml", *FILES)]
    assert sorted(content) == sorted(expected)
    assert {name: (made.with_suffix("") / name).read_bytes() for name in content} == content
    for one, two in ((1, 2), (2, 1)):
        of_case = case.folder / "task2" / f"{LABEL}_{two}" / FILES[0]
        assert content[f"task2/{LABEL}_{one}/{FILES[0]}"] == of_case.read_bytes()


def test_the_meta_file_says_what_the_run_says(case):
    texts = [path.read_text() for path in sorted(case.folder.rglob("*.meta.yaml"))]
    one, two = map(yaml.safe_load, texts)
    assert one["submission"].items() >= {"label": f"{LABEL}_1", "authors": AUTHORS["authors"]}.items()
    assert one["system"]["complexity"] == {"total_parameters": 90_000_000, "MACS": "45 G"}
    assert two["system"]["complexity"] == {"total_parameters": 900_000_000, "MACS": "450 G"}
    assert one["system"]["description"].items() >= {
        "summary": "uniform weights, 1 score tables: mahalanobis/arcface_full",
        "ensemble_method": None,
        "data_augmentation": "time mask; frequency mask; noise",
        "attribute_usage": "classes of the training",
    }.items()  # fmt: skip
    ensemble = {"ensemble_method": "calibrated scores of all seeds: uniform weights"}
    assert two["system"]["description"].items() >= {**ensemble, "ensemble_method_subsystem_count": 10}.items()
    assert "arcface, lora fine-tuning" in two["system"]["description"]["machine_learning_method"]
    assert [d["name"] for d in one["system"]["external_datasets"]] == ["AudioSet"]
    resources = [(resource["file"], resource["sha256"]) for resource in one["system"]["external_resources"]]
    assert resources == [("BEATs_iter3.pt", "8d1b2340")]
    metrics = official_metrics(read_table(case.run / "systems" / "s1" / "fused.parquet"))
    for machine, cells in one["results"]["development_dataset"].items():
        expected = {cell: getattr(metrics.machines[machine], cell) for cell in ("auc_source", "auc_target", "pauc")}
        assert cells.items() >= {cell: round(value, 2) for cell, value in expected.items()}.items()
    omega = f"{round(metrics.omega, 2)}; on machines without a say in the weights unknown."
    assert f"# Omega of the results below {omega}\n" in texts[0]


def test_configurations_without_weight_and_shared_networks_do_not_count(run):
    """Files from outside are named, also those of tokenizers, and not what comes with tutti or where a file lies."""
    result = json.loads((run / "systems" / "s2" / "result.json").read_text())
    chosen = ("arcface_full_dual", "softmax_full", "softmax_partial", "subcenter_full")
    weights = {name: float(name in chosen) for name in result["delivered"]["weights"]["mahalanobis"]}
    dual, *others = [result["spec"]["subsystems"]["mahalanobis"][name]["branch"] for name in chosen]
    dual["masked_prediction"]["tokenizers"] = [{"path": "/home/t.pt", "sha256": "0" * 8}, {"path": "random:0"}]
    files = "/home/somebody/BEATs_iter3.pt", "/home/somebody/BEATs_iter3.pt", "small"
    for branch, strategy, file in zip(others, ("frozen", "head", "frozen"), files, strict=True):
        branch |= {"strategy": {"name": strategy}, "pooling": {"name": "mean"}}
        branch["backbone"]["path"] = file
    others[1]["channel"] = "far"
    changed(run, "s2", spec=result["spec"], delivered={**result["delivered"], "weights": {"mahalanobis": weights}})
    make_package(run, ["s2"], label=LABEL)
    text = next(run.rglob("*.meta.yaml")).read_text()
    system = yaml.safe_load(text)["system"]
    assert system["complexity"] == {"total_parameters": 180_660_000, "MACS": "135 G"}
    assert system["description"]["ensemble_method_subsystem_count"] == 4
    assert system["description"]["input"] == "near microphone; far microphone"
    assert [resource["file"] for resource in system["external_resources"]] == ["BEATs_iter3.pt", "t.pt"]
    assert "/home" not in text


def test_from_the_form_to_a_package_that_passes(run, tmp_path):
    """As on the evening before the deadline: make, fill in, put the report there, make again, check."""
    made = tutti_here("submission", "make", run)
    assert made.exit_code == 0, made.stderr
    for key in ("authors.0.lastname", "submission.label"):
        assert f"{key}: still to be filled in" in made.stderr
    form = run / "package" / "authors.yaml"
    assert made.stderr.endswith(f"next: fill in {form} and run this again\n")
    assert tutti_here("submission", "check", made.stdout.strip()).exit_code == 2
    filled = {**AUTHORS, "label": LABEL, "systems": {"s1": {"name": "One", "abbreviation": "1"}}}
    form.write_text(yaml.safe_dump(filled))
    for name in "xy":
        copied_system(run, name)
    again = tutti_here("submission", "make", run, "s1", "s2", "x", "y")
    assert f"to do: {LABEL}.zip: no technical report (PDF) in it\n" in again.stderr
    assert "next: fill in" not in again.stderr
    (run / "package" / LABEL / "task2" / f"{LABEL}.technical_report.pdf").write_bytes(b"%PDF-1.4\n")
    last = tutti_here("submission", "make", run, "s1", "--json")
    package = run / "package" / f"{LABEL}.zip"
    assert json.loads(last.stdout) == {"package": str(package), "errors": [], "warnings": []}
    with zipfile.ZipFile(package) as archive:
        systems = {name.split("/")[1] for name in archive.namelist()}
        meta = yaml.safe_load(archive.read(f"task2/{LABEL}_1/{LABEL}_1.meta.yaml"))
    assert systems == {f"{LABEL}_1", f"{LABEL}.technical_report.pdf"}  # nothing is left of the others
    assert meta["submission"]["name"] == "One"
    assert tutti_here("submission", "check", package).exit_code == 0
    mine = form.rename(tmp_path / "mine.yaml")
    form.write_text("authors: [")
    elsewhere = tutti_here("submission", "make", run, "--label", "Li_SJTU_task2", "--meta", mine)
    assert elsewhere.stdout == f"{run / 'package' / 'Li_SJTU_task2.zip'}\n", elsewhere.stderr


def test_without_known_labels_results_are_still_to_be_filled_in(run):
    shutil.rmtree(run / "systems")
    paths = [path for machine in ("Sander", "ToyDrone") for path in clip_paths(machine, labelled=False)]
    write_result(run, "s1", fused_table(paths, 0), metrics=False)
    errors = check_package(make_package(run, label=LABEL)).errors
    assert any("results.development_dataset: Dictionary should have at least 1" in error for error in errors)


def of_training_alone(run):
    write_result(run, "demo", fused_table(clip_paths("fan", True)[:12], 0), metrics=False)


def s1(**values):
    return lambda run: changed(run, "s1", **values)


def form(text):
    return lambda run: (run / "package" / "authors.yaml").write_text(text)


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda run: shutil.rmtree(run / "systems"), {}, "no results in it"),
        (lambda run: None, {"systems": ["s3"]}, "no result of system 's3'; there are s1, s2"),
        (lambda run: (run / "systems/s1/fused.parquet").write_bytes(b"x"), {}, "s1/fused.parquet: damaged"),
        (lambda run: (run / "systems/s1/result.json").write_text("{"), {}, "result.json: no result of a fusion"),
        (s1(spec={"name": "s1"}), {}, "result of s1: made by another version of tutti"),
        (s1(transductive=True), {}, "statistics of test clips, which the challenge forbids"),
        (s1(dataset="e" * 64), {}, r"different data sets: s1 \(eeeeeeee\), s2 \(dddddddd\)"),
        (lambda run: None, {"label": "Jiang THU"}, "'Jiang THU' is no label such as Jiang_THU_task2"),
        (lambda run: None, {"label": "../x_y_task2"}, "is no label"),
        (form("authors: ["), {}, "authors.yaml: not YAML"),
        (form("{abstract: x, authors: [{}], colour: red}"), {}, "yaml: colour: unknown key"),
        (lambda run: [copied_system(run, name) for name in "xyz"], {}, "5 systems, the challenge takes 4"),
        (of_training_alone, {"systems": ["demo"]}, "systems/demo: the data have no test clips, so there is nothing to"),
    ],
)
def test_what_cannot_be_packed(run, spoil, options, message):
    (run / "package").mkdir()
    form(yaml.safe_dump(AUTHORS))(run)
    spoil(run)
    with pytest.raises(InputError, match=message):
        make_package(run, **{"label": LABEL, **options})
