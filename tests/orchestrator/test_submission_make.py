"""Packages of runs: what is in them, and what cannot be packed."""

import json
import shutil
import zipfile

import pytest
import yaml

from orchestrator.submission.check import check_package
from orchestrator.submission.package import make_package
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import read_table
from tests.commands import tutti_here
from tests.orchestrator.package_case import AUTHORS, LABEL, Case, clip_paths, fused_table, write_result

TRAINING = [path for path in clip_paths("fan", True) if "train" in path]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("case"))


@pytest.fixture
def run(case, tmp_path):
    """A copy of the run, to be changed."""
    return shutil.copytree(case.run, tmp_path / "run", ignore=shutil.ignore_patterns("package"))


def read_meta(case, number):
    label = f"{LABEL}_{number}"
    return yaml.safe_load((case.folder / "task2" / label / f"{label}.meta.yaml").read_text())


def test_the_zip_file_holds_what_is_in_the_folder(case):
    with zipfile.ZipFile(case.zip) as archive:
        names = archive.namelist()
        for name in names:
            assert archive.read(name) == (case.folder / name).read_bytes()
    assert sorted(names) == sorted(
        f"task2/{LABEL}_{n}/{name}"
        for n in (1, 2)
        for name in (
            f"{LABEL}_{n}.meta.yaml",
            *(f"{k}_{m}_section_00_test.csv" for k in ("anomaly_score", "decision_result") for m in ("fan", "pump")),
        )
    )


def test_the_meta_file_says_what_the_run_says(case):
    one, two = read_meta(case, 1), read_meta(case, 2)
    assert one["submission"]["label"] == f"{LABEL}_1"
    assert one["submission"]["authors"] == AUTHORS["authors"]
    assert one["system"]["complexity"] == {"total_parameters": 90_000_000, "MACS": "45 G"}
    assert two["system"]["complexity"] == {"total_parameters": 900_000_000, "MACS": "450 G"}
    assert one["system"]["description"]["ensemble_method"] is None
    assert two["system"]["description"]["ensemble_method"] == "calibrated scores of all seeds: uniform weights"
    assert two["system"]["description"]["ensemble_method_subsystem_count"] == 10
    assert "arcface, lora fine-tuning" in two["system"]["description"]["machine_learning_method"]
    assert one["system"]["description"]["data_augmentation"] == "time mask; frequency mask; noise"
    assert one["system"]["description"]["summary"] == "uniform weights, 1 score tables: mahalanobis/arcface_full"
    assert one["system"]["description"]["attribute_usage"] == "classes of the training"
    assert [d["name"] for d in one["system"]["external_datasets"]] == ["AudioSet"]
    (resource,) = one["system"]["external_resources"]
    assert (resource["file"], resource["sha256"]) == ("BEATs_iter3.pt", "8d1b2340")
    metrics = official_metrics(read_table(case.run / "systems" / "s1" / "fused.parquet")).machines
    for machine, cells in one["results"]["development_dataset"].items():
        assert cells["auc_source"] == pytest.approx(metrics[machine].auc_source, abs=0.005)
        assert cells["pauc"] == pytest.approx(metrics[machine].pauc, abs=0.005)


def test_configurations_without_weight_and_shared_backbones_do_not_count(run):
    path = run / "systems" / "s2" / "result.json"
    result = json.loads(path.read_text())
    weights = result["delivered"]["weights"]["mahalanobis"]
    chosen = ("arcface_full", "softmax_full", "subcenter_full")
    result["delivered"]["weights"]["mahalanobis"] = {name: float(name in chosen) for name in weights}
    for name in chosen[1:]:
        branch = result["spec"]["subsystems"]["mahalanobis"][name]["branch"]
        branch |= {"strategy": {"name": "frozen"}, "pooling": {"name": "mean"}}
    branch["channel"] = "far"
    branch["backbone"]["path"] = "/home/somebody/BEATs_iter3.pt"
    result["spec"]["subsystems"]["mahalanobis"]["softmax_full"]["branch"]["backbone"] = branch["backbone"]
    path.write_text(json.dumps(result))
    make_package(run, ["s2"], label=LABEL)
    text = next(run.rglob("*.meta.yaml")).read_text()
    system = yaml.safe_load(text)["system"]
    assert system["complexity"] == {"total_parameters": 180_000_000, "MACS": "135 G"}
    assert system["description"]["ensemble_method_subsystem_count"] == 3
    assert system["description"]["input"] == "near microphone; far microphone"
    assert len(system["external_resources"]) == 1
    assert "somebody" not in text


def test_from_the_form_to_a_package_that_passes(run):
    """As on the evening before the deadline: make, fill in, put the report there, make again, check."""
    made = tutti_here("submission", "make", run)
    assert made.exit_code == 0, made.stderr
    assert "authors.0.lastname: still to be filled in" in made.stderr
    assert "submission.label: still to be filled in" in made.stderr
    form = run / "package" / "authors.yaml"
    assert made.stderr.endswith(f"next: fill in {form} and run this again\n")
    assert tutti_here("submission", "check", made.stdout.strip()).exit_code == 2
    form.write_text(
        yaml.safe_dump({**AUTHORS, "label": LABEL, "systems": {"s1": {"name": "One", "abbreviation": "1"}}})
    )
    again = tutti_here("submission", "make", run, "--json")
    found = json.loads(again.stdout)
    assert found["errors"] == []
    assert found["warnings"] == [f"{LABEL}.zip: no technical report (PDF) in it"]
    (run / "package" / LABEL / "task2" / f"{LABEL}.technical_report.pdf").write_bytes(b"%PDF-1.4\n")
    last = tutti_here("submission", "make", run, "s1", "--json")
    assert json.loads(last.stdout) == {"package": found["package"], "errors": [], "warnings": []}
    with zipfile.ZipFile(found["package"]) as archive:
        assert not [name for name in archive.namelist() if "_2/" in name]  # what is left of the two systems
        meta = yaml.safe_load(archive.read(f"task2/{LABEL}_1/{LABEL}_1.meta.yaml"))
    assert meta["submission"]["name"] == "One"
    assert tutti_here("submission", "check", found["package"]).exit_code == 0


def test_systems_are_numbered_as_they_are_named(case, tmp_path):
    made = make_package(case.run, ["s2", "s1"], tmp_path / "out", LABEL, case.authors)
    with zipfile.ZipFile(made) as archive:
        first = archive.read(f"task2/{LABEL}_1/anomaly_score_fan_section_00_test.csv")
    assert first == (case.folder / "task2" / f"{LABEL}_2" / "anomaly_score_fan_section_00_test.csv").read_bytes()
    again = make_package(case.run, ["s2", "s1"], tmp_path / "again", LABEL, case.authors)
    assert again.read_bytes() == made.read_bytes()


def test_without_known_labels_results_are_still_to_be_filled_in(run):
    shutil.rmtree(run / "systems")
    paths = [path for machine in ("Sander", "ToyDrone") for path in clip_paths(machine, labelled=False)]
    write_result(run, "s1", fused_table(paths, 0), metrics=False)
    errors = check_package(make_package(run, label=LABEL)).errors
    assert any("results.development_dataset: Dictionary should have at least 1" in error for error in errors)


@pytest.mark.parametrize(
    ("spoil", "systems", "label", "message"),
    [
        (lambda run: shutil.rmtree(run / "systems"), (), LABEL, "no results in it"),
        (lambda run: None, ("s3",), LABEL, "no result of system 's3'; there are s1, s2"),
        (lambda run: (run / "systems/s1/fused.parquet").write_bytes(b"x"), (), LABEL, "s1/fused.parquet: damaged"),
        (
            lambda run: (run / "systems/s1/result.json").write_text("{"),
            (),
            LABEL,
            "result.json: no result of a fusion, damaged",
        ),
        (lambda run: None, (), "Jiang THU", "'Jiang THU' is no label such as Jiang_THU_task2"),
        (lambda run: None, (), "../x_y_task2", "is no label"),
        (
            lambda run: write_result(run, "demo", fused_table(clip_paths("fan", True), 0), dataset="e" * 64),
            (),
            LABEL,
            r"results on different data sets: demo \(eeeeeeee\), s1 \(dddddddd\)",
        ),
        (
            lambda run: [shutil.copytree(run / "systems/s1", run / f"systems/x{i}") for i in range(3)],
            (),
            LABEL,
            "5 systems, the challenge takes 4",
        ),
        (
            lambda run: write_result(run, "demo", fused_table(TRAINING, 0), metrics=False),
            ("demo",),
            LABEL,
            "systems/demo: the data have no test clips, so there is nothing to submit",
        ),
    ],
)
def test_what_cannot_be_packed(run, spoil, systems, label, message):
    spoil(run)
    with pytest.raises(InputError, match=message):
        make_package(run, systems, label=label)


def test_scores_that_the_rules_forbid_are_not_packed(run):
    path = run / "systems" / "s1" / "result.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "transductive": True}))
    with pytest.raises(InputError, match="statistics of test clips, which the challenge forbids"):
        make_package(run)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("authors: [", "not YAML"),
        ("- a", "Input should be a mapping with keys among abstract"),
        ("abstract: x", "authors: Field required"),
        ("{abstract: x, authors: [{}], colour: red}", "colour: unknown key; allowed: abstract"),
    ],
)
def test_an_authors_file_that_cannot_be_used(case, tmp_path, text, message):
    path = tmp_path / "authors.yaml"
    path.write_text(text)
    refused = tutti_here("submission", "make", case.run, "--out", tmp_path / "out", "--meta", path)
    assert refused.exit_code == 2
    assert f"{path}: " in refused.stderr
    assert message in refused.stderr
    assert len(refused.stderr.removeprefix(f"packing {case.run}\n").strip().splitlines()) == 1
