"""From a run to the challenge's files and the package for it; and packages broken in every way we can think of."""

import json
import re
import shutil
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.submission.check import Findings, check_package
from orchestrator.submission.files import write_submission
from orchestrator.submission.package import make_package
from scoring.decisions import thresholds
from scoring.errors import InputError
from scoring.metrics import official_metrics
from scoring.table import read_table
from tests.commands import tutti_here
from tests.orchestrator.package_case import AUTHORS, LABEL, Case, clip_paths, fused_table, write_result, zipped
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
    left = ["anomaly_score_gearbox_section_00_test.csv", blocked.name, "notes.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == left


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


ONE, TWO = f"{LABEL}_1", f"{LABEL}_2"
SCORES, _, DECISIONS, DECISIONS_OF_PUMP = FILES
MISSPELT, UNTESTED = SCORES.replace("fan", "Fan"), SCORES.replace("_test", "")
META = f"{ONE}.meta.yaml"
DEV = ("results", "development_dataset")
CLIP = "section_00_source_test_anomaly_0000_noAttribute.wav"


@pytest.fixture
def package(case, tmp_path):
    return Path(shutil.copytree(case.folder, tmp_path / "package"))


def edit(name, change, system=ONE):
    """Change a file's text."""
    return lambda task: (task / system / name).write_text(change((task / system / name).read_text()))


def put(*keys, to):
    """Set one value of the meta file, or change it by a function; None removes it."""

    def mutate(text):
        content = inner = yaml.safe_load(text)
        for key in keys[:-1]:
            inner = inner[key]
        value = inner.pop(keys[-1], None)
        if to is not None:
            inner[keys[-1]] = to(value) if callable(to) else to
        return yaml.safe_dump(content)

    return edit(META, mutate)


def copied(label):
    """The first system once more under another label, in itself in order."""

    def mutate(task):
        shutil.copytree(task / ONE, task / label)
        meta = (task / label / META).rename(task / label / f"{label}.meta.yaml")
        meta.write_text(meta.read_text().replace(ONE, label))

    return mutate


def moved(*paths):
    """Files or folders under other names: source, target, source, …"""
    return lambda task: [(task / a).rename(task / b) for a, b in zip(paths[::2], paths[1::2], strict=True)]


# name → how to break it, the file that must be named, the cause that must be told
BROKEN = {
    "a machine without tables": (
        moved(f"{ONE}/{SCORES}", "1.pdf", f"{ONE}/{DECISIONS}", "2.pdf"), DECISIONS, "missing; there are clips .*data",
    ),
    "a machine's name misspelt": (
        moved(f"{ONE}/{SCORES}", f"{ONE}/{MISSPELT}"), MISSPELT, "no such machine.*; it has fan section 00, pump sec",
    ),
    "a table's name without test": (
        moved(f"{ONE}/{SCORES}", f"{ONE}/{UNTESTED}"), UNTESTED, "not a table's name; must be anomaly_score_<machine>",
    ),
    "a row is missing": (edit(SCORES, lambda s: s.partition("\n")[2]), SCORES, f"no usable row for {CLIP} of .*data"),
    "a clip of another set": (edit(SCORES, lambda s: s + "section_00_0007.wav,1\n"), SCORES, "no such test clip"),
    "a clip twice": (edit(SCORES, lambda s: s + s.splitlines()[2]), SCORES, "row 21: the clip stands in an earlier"),
    "clips with folders": (edit(SCORES, lambda s: s.replace("sec", "a/sec")), SCORES, "row 1, 2, 3 and 17 more: must"),
    "a header": (edit(SCORES, lambda s: "file,score\n" + s), SCORES, "row 1: must begin with .*no header"),
    "too large for a float": (edit(SCORES, lambda s: s.replace("\n", "e999\n")), SCORES, "row .*: must .* a finite"),
    "an empty table": (edit(SCORES, lambda s: ""), SCORES, "no usable rows"),
    "a probability as decision": (edit(DECISIONS, lambda s: s.replace(",1", ",.7")), DECISIONS, "row .*: the decision"),
    "decisions of another machine": (
        lambda t: shutil.copy(t / ONE / DECISIONS_OF_PUMP, t / ONE / DECISIONS),
        DECISIONS, "no threshold on the scores gives these decisions: section_00.* is 0 with score .*, section",
    ),
    "no meta file": (lambda t: (t / ONE / META).unlink(), META, "missing; each system has a meta file"),
    "no YAML": (edit(META, lambda s: s.replace("submission:", "submission: [", 1)), META, "not YAML: .* line"),
    "YAML that is a list": (edit(META, lambda s: "- label\n- name\n"), META, "Input should be a valid dictionary"),
    "an alias of itself": (edit(META, lambda s: "a: &a [*a]"), META, "nested too deeply"),
    "no such day": (edit(META, lambda s: "day: 2026-13-45"), META, "not YAML: month must be in"),
    "another label": (put("submission", "label", to=TWO), META, f"label is '{TWO}', and the folder is '{ONE}'"),
    "no institute": (put("submission", "authors", 0, "affiliation", to=None), META, "affiliation: Field required"),
    "a placeholder": (put("submission", "authors", 0, "lastname", to="todo"), META, "authors.0.lastname: still to"),
    "a long abbreviation": (put("submission", "abbreviation", to="a" * 11), META, "abbreviation: .*at most 10"),
    "a result too high": (put(*DEV, "pump", "auc_source", to=lambda v: v + 0.2), META, "auc_source: not .* instead of"),
    "a result too low": (put(*DEV, "pump", "pauc", to=lambda v: v - 0.2), META, "pump.pauc: not .* instead of"),
    "a result in words": (put(*DEV, "fan", "pauc", to="61 %"), META, "fan.pauc: not what the scores give: 61 % inst"),
    "a folder that is no label": (moved(TWO, f"{LABEL}_5"), f"{LABEL}_5", "is no label such as .* numbered 1 to 4"),
    "two teams": (copied("Li_SJTU_task2_3"), "Li_SJTU_task2_3", f"another team's label than {ONE}"),
    "five systems": (lambda t: [copied(f"c_c_task2_{n}")(t) for n in (1, 2, 3)], "package", "5 systems, at most 4"),
    "a system twice": (lambda t: shutil.copytree(t / ONE, t / "again" / ONE), f"again/{ONE}", "the same label as"),
    "nothing in it": (lambda t: shutil.rmtree(t), "package", "no system in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_told_with_file_and_cause(case, package, name):
    mutate, place, cause = BROKEN[name]
    mutate(package / "task2")
    as_zip = ("a header", "two teams", "a placeholder")
    errors = check_package(zipped(package) if name in as_zip else package, case.data).errors
    assert any(re.match(rf"[^:]*{re.escape(place)}[^:]*: .*{cause}", error) for error in errors), errors
    assert not any("\n" in error for error in errors)


LEGAL = {
    "what tutti makes": lambda t: None,
    "Windows line ends and empty lines at the end": edit(SCORES, lambda s: s.replace("\n", "\r\n") + "\n\n"),
    "quoted names in another order": edit(
        SCORES, lambda s: re.sub("(?m)^(.*),", r'"\1", ', "\n".join(s.split()[::-1]))
    ),
    "scores on another scale": edit(
        SCORES, lambda s: re.sub(",(.*)", lambda m: f",{1e6 * float(m[1]) - 5e5:+.17E}", s)
    ),
    "decisions as floats": edit(DECISIONS, lambda s: s.replace("\n", ".0\n")),
    "one system": lambda t: shutil.rmtree(t / TWO),
    "not in a folder of the task": moved(ONE, f"../{ONE}", TWO, f"../{TWO}"),
    "further keys": put("system", "front_ends", to=[{"name": "AudioSet", "share": "100 %"}]),
    "a question": put("submission", "name", to="What is normal?"),
    "results with one digit": edit(META, lambda s: re.sub(r"\b\d+\.\d\d\b", lambda m: f"{float(m[0]):.1f}", s)),
    "further machines' results and means": put(*DEV, "ToyCar", to={"auc_source": 71.3, "mean": 0}),
    "what one operating system leaves": lambda t: (t / ONE / "._anomaly_score.csv").write_bytes(b"\0"),
    "what another one leaves": lambda t: shutil.copytree(t / ONE, t.parent / "__MACOSX" / ONE),
}


@pytest.mark.parametrize("name", LEGAL)
def test_what_teams_may_do_passes_as_folder_and_zip(case, package, name):
    LEGAL[name](package / "task2")
    for path, data in ((package, case.data), (package, None), (zipped(package), case.data)):
        assert check_package(path, data) == Findings()


def test_warnings_for_what_is_odd(case, package):
    task = package / "task2"
    for label in (f"{LABEL}_3", f"{LABEL}_4"):
        copied(label)(task)
    edit(DECISIONS, lambda s: s.replace(",1", ",0"))(task)
    put(*DEV, "fan", to=None)(task)
    (task / f"{LABEL}.technical_report.pdf").rename(package / "notes.txt")
    found = check_package(package, case.data)
    for part in (
        f"task2/{ONE}/{DECISIONS}: all clips are decided alike",
        f"task2/{ONE}/{META}: results.development_dataset.fan.auc_source: not what the scores give: None instead of",
        f"task2/{LABEL}_4: the same scores as {LABEL}_3",
        "notes.txt: not a file of a package",
        "package: no technical report",
    ):
        assert part in "\n".join(found.warnings)
    assert found.errors == []


def test_the_command_prints_every_finding_and_exits_with_2(case, package):
    for name in ("too large for a float", "a probability as decision", "a result too high", "a placeholder"):
        BROKEN[name][0](package / "task2")
    found = check_package(package, case.data)
    assert len(found.errors) >= 4
    check = ["submission", "check", package, "--data", case.data]
    printed, as_json = tutti_here(*check), tutti_here(*check, "--json")
    assert printed.exit_code == as_json.exit_code == 2
    lines = [f"error: {error}" for error in found.errors] + [f"warning: {warning}" for warning in found.warnings]
    assert printed.stdout.splitlines() == lines
    assert f"Error: {package}: {len(found.errors)} errors, {len(found.warnings)} warnings" in printed.stderr
    assert json.loads(as_json.stdout) == asdict(found)
    good = tutti_here("submission", "check", case.folder / "task2" / ONE, "--data", case.data)  # a single system
    assert (good.exit_code, good.stdout) == (0, f"warning: {ONE}: no technical report (PDF) in it\n")


def test_an_evaluation_set_with_hidden_labels(tmp_path):
    """Only the machines with hidden labels are packed; the results are of the others."""
    case = Case(tmp_path, hidden=("Sander", "ToyDrone"))
    assert {path.name.split("_")[2] for path in case.folder.rglob("*.csv")} == {"Sander", "ToyDrone"}
    assert check_package(case.folder, case.data).errors == []
    for path in [*case.data.glob("*/train"), case.data / "fan", case.data / "pump"]:
        shutil.rmtree(path)
    assert check_package(case.folder, case.data).errors == []  # as the organisers publish it
    victim = next(case.folder.rglob("anomaly_score_Sander*"))
    victim.write_text("".join(victim.read_text().splitlines(keepends=True)[:-2]))
    (error,) = check_package(case.folder, case.data).errors
    assert error.endswith(f"/{victim.name}: no usable row for section_00_0018.wav, section_00_0019.wav of {case.data}")


def test_without_a_data_set_tables_are_held_against_each_other(package):
    task = package / "task2"
    for name in (SCORES, DECISIONS):
        edit(name, lambda s: s.partition("\n")[2], TWO)(task)
    (task / TWO / SCORES.replace("fan", "pump")).unlink()
    assert check_package(package).errors == [
        f"task2/{TWO}/{SCORES}: no usable row for {CLIP} of other tables",
        f"task2/{TWO}/{SCORES.replace('fan', 'pump')}: missing; there are clips for it in other tables",
        f"task2/{TWO}/{DECISIONS}: no usable row for {CLIP} of other tables",
    ]


def test_damaged_zip_files_and_what_is_no_package_or_data_set(package, tmp_path):
    path = zipped(package)
    content = path.read_bytes()
    for spoilt in (content.replace(b".wav,", b".wow,", 1), content[: len(content) // 2]):
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read as a folder or zip file (")):
            check_package(path)
    for place, data, message in (
        (tmp_path / "nothing.zip", None, "no such package"),
        (package, tmp_path, "not a data set"),
    ):
        with pytest.raises(InputError, match=message):
            check_package(place, data)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode), st.sampled_from([SCORES, DECISIONS, META]))
def test_whatever_stands_in_a_file_is_a_finding_and_no_crash(case, package, content, name):
    system = package / "task2" / ONE
    whole = (case.folder / "task2" / ONE / name).read_bytes()
    for text in (content, whole[:500] + content + whole[500:], whole):
        (system / name).write_bytes(text)
        errors = check_package(system, case.data).errors
        assert all(error.startswith(f"{ONE}/{name}: ") for error in errors)
    assert errors == []


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=8))
def test_decisions_are_in_order_if_and_only_if_some_threshold_gives_them(tmp_path, clips):
    folder = tmp_path / ONE
    folder.mkdir(exist_ok=True)
    (folder / SCORES).write_text("".join(f"{i}.wav,{score}\n" for i, (score, _) in enumerate(clips)))
    (folder / DECISIONS).write_text("".join(f"{i}.wav,{decision:d}\n" for i, (_, decision) in enumerate(clips)))
    (*wrong, no_meta) = check_package(folder).errors
    assert no_meta.endswith("missing; each system has a meta file")
    possible = any(all((score > t) == decision for score, decision in clips) for t in np.arange(-0.5, 6))
    assert (wrong == []) == possible
