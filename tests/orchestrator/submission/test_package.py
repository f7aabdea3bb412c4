"""From a run to the challenge's files and the package for it; and packages broken in every way we can think of."""

import json
import re
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
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
from tests.finished import BACKBONE
from tests.orchestrator.conftest import AUTHORS, LABEL, Case, clip_paths, write_result
from tests.tables import make_table

FILES = [f"{kind}_{m}_section_00_test.csv" for kind in ("anomaly_score", "decision_result") for m in ("fan", "pump")]
ONE, TWO = f"{LABEL}_1", f"{LABEL}_2"
REPORT = f"{LABEL}.technical_report.pdf"


def test_scores_above_the_threshold_are_anomalies_and_earlier_files_go_when_new_ones_are_there(tmp_path):
    table = make_table(labelled=False)
    limits, rows = thresholds(table), table.to_pylist()
    test = [row for row in rows if row["split"] == "test"]
    test[0]["score"] = limits["fan", 0]  # which is not above
    (tmp_path / "notes.csv").touch()
    write_submission(pa.Table.from_pylist(rows, table.schema), tmp_path)
    for machine, names in (("fan", FILES[::2]), ("pump", FILES[1::2])):
        scores, decisions = ([line.split(",") for line in (tmp_path / name).read_text().splitlines()] for name in names)
        wanted = [row for row in test if row["machine"] == machine]
        assert [(name, float(value)) for name, value in scores] == [(row["clip"], row["score"]) for row in wanted]
        assert decisions == [[row["clip"], str(int(row["score"] > limits[machine, 0]))] for row in wanted]
        assert {decision for _, decision in decisions} == {"0", "1"}
    new = ["anomaly_score_gearbox_section_00_test.csv", "decision_result_gearbox_section_00_test.csv"]
    (tmp_path / new[1]).mkdir()
    with pytest.raises(IsADirectoryError):
        write_submission(make_table(["gearbox"]), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*FILES, *new, "notes.csv"])
    (tmp_path / new[1]).rmdir()
    write_submission(make_table(["gearbox"]), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [*new, "notes.csv"]


@pytest.fixture
def run(case, tmp_path):
    return shutil.copytree(case.run, tmp_path / "run", ignore=shutil.ignore_patterns("package"))


def copied_systems(run):
    for name in "xyz":
        shutil.copytree(run / "systems" / "s1", run / "systems" / name)


def test_the_zip_file_holds_the_folder_in_the_order_of_the_systems_and_meta_files_say_what_the_run_says(case, tmp_path):
    made, again = (make_package(case.run, ["s2", "s1"], tmp_path / out, LABEL, case.authors) for out in "ab")
    assert made.read_bytes() == again.read_bytes()
    with zipfile.ZipFile(made) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    expected = [f"task2/{system}/{name}" for system in (ONE, TWO) for name in (f"{system}.meta.yaml", *FILES)]
    assert sorted(content) == sorted(expected)
    assert {name: (made.with_suffix("") / name).read_bytes() for name in content} == content
    for one, two in ((ONE, TWO), (TWO, ONE)):
        assert content[f"task2/{one}/{FILES[0]}"] == (case.folder / "task2" / two / FILES[0]).read_bytes()
    texts = [path.read_text() for path in sorted(case.folder.rglob("*.meta.yaml"))]
    one, two = map(yaml.safe_load, texts)
    assert one["submission"].items() >= {"label": ONE, "authors": AUTHORS["authors"]}.items()
    assert one["system"]["complexity"] == {"total_parameters": None, "MACS": None}  # the checkpoint is not here
    told = {"summary": "uniform weights, 1 score table: mahalanobis/arcface_full", "ensemble_method": None}
    told |= {"data_augmentation": "time mask; frequency mask; noise", "attribute_usage": "classes of the training"}
    assert one["system"]["description"].items() >= told.items()
    ensemble = {"ensemble_method": "calibrated scores of all seeds: uniform weights"}
    assert two["system"]["description"].items() >= {**ensemble, "ensemble_method_subsystem_count": 10}.items()
    assert "arcface, lora fine-tuning" in two["system"]["description"]["machine_learning_method"]
    assert [d["name"] for d in one["system"]["external_datasets"]] == ["AudioSet"]
    (file,) = one["system"]["external_resources"]
    assert (file["name"], file["file"]) == ("weights of BEATs_iter3", "BEATs_iter3")
    metrics = official_metrics(read_table(case.run / "systems" / "s1" / "fused.parquet"))
    cells = ("auc_source", "auc_target", "pauc")
    measured = {m: {cell: round(getattr(of, cell), 2) for cell in cells} for m, of in metrics.machines.items()}
    assert one["results"]["development_dataset"] == measured
    omega = f"{round(metrics.omega, 2)}; on machines without a say in the weights unknown."
    assert f"# Omega of the results below {omega}\n" in texts[0]


def test_configurations_without_weight_shared_networks_and_unlabelled_machines_do_not_count(run, tmp_path):
    path = run / "systems" / "s2" / "result.json"
    result = json.loads(path.read_text())
    chosen = ("arcface_full_dual", "softmax_full", "softmax_partial", "subcenter_full")
    weights = result["delivered"]["weights"]["mahalanobis"]
    weights.update({name: float(name in chosen) for name in weights})
    dual, *others = [result["spec"]["subsystems"]["mahalanobis"][name]["branch"] for name in chosen]
    dual["masked_prediction"]["tokenizers"] = [{"path": "/home/t.pt", "sha256": "0" * 8}, {"path": "random:0"}]
    open_beats, mine = tmp_path / "OpenBEATs-Base-i3" / "epoch_latest.pt", tmp_path / "mine.pt"
    open_beats.parent.mkdir()
    for file in (open_beats, mine):
        shutil.copy(BACKBONE, file)
    dual["backbone"] = {"path": str(mine), "sha256": None}
    files = str(open_beats), str(open_beats), "small"
    for branch, strategy, file in zip(others, ("frozen", "head", "frozen"), files, strict=True):
        branch |= {"strategy": {"name": strategy}, "pooling": {"name": "mean"}}
        branch["backbone"] |= {"path": file, "sha256": None}
    others[1]["channel"] = "far"
    result["machines"]["in_sample"] = None
    path.write_text(json.dumps(result))
    errors = check_package(make_package(run, ["s2"], label=LABEL)).errors
    assert any("results.development_dataset: Dictionary should have at least 1" in error for error in errors)
    text = next(run.rglob("*.meta.yaml")).read_text()
    system = yaml.safe_load(text)["system"]
    ours, small = 127_940, 662_068
    assert system["complexity"] == {"total_parameters": 2 * ours + small, "MACS": f"{(3 * ours + small) / 2e6:.3g} G"}
    networks = ["BEATs' architecture with weights of mine.pt", "OpenBEATs-Base-i3"]
    assert system["description"]["embeddings"].split("; ")[:2] == networks
    assert "; small (" in system["description"]["embeddings"]
    assert [d["name"] for d in system["external_datasets"]] == [
        "pre-training data of OpenBEATs (environmental sound, music, bioacoustics)"
    ]
    assert system["description"]["ensemble_method_subsystem_count"] == 4
    assert system["description"]["input"] == "near microphone; far microphone"
    resources = {resource["file"]: bool(resource["reference"]) for resource in system["external_resources"]}
    assert [*resources.items()] == [("mine.pt", False), ("epoch_latest.pt", True), ("t.pt", False)]
    assert not re.search(f"/home|{tmp_path}", text)


def test_from_the_form_to_a_package_that_passes(run, tmp_path):
    form, package = run / "package" / "authors.yaml", run / "package" / f"{LABEL}.zip"
    made = tutti_here("submission", "make", run)
    (told,) = [line for line in made.stderr.splitlines() if "still to be filled in: submission.label, " in line]
    for part in ("_1.meta.yaml, task2/", "_2.meta.yaml: ", "authors.0.lastname"):
        assert part in told
    assert made.stderr.endswith(f"next: fill in {form} and run this again\n")
    codes = made.exit_code, tutti_here("submission", "check", made.stdout.strip()).exit_code
    for label in (["--label", LABEL], []):  # the form keeps it
        other = tutti_here("submission", "make", run, *label, "--out", tmp_path / "other").stdout.strip()
        assert Path(other).name == f"{LABEL}.zip"
    filled = {**AUTHORS, "label": LABEL, "systems": {"s1": {"name": "One", "abbreviation": "1"}}}
    form.write_text(yaml.safe_dump(filled))
    copied_systems(run)
    again = tutti_here("submission", "make", run, "s1", "s2", "x", "y")
    assert f"to do: {LABEL}.zip: no technical report (PDF) in it\n" in again.stderr
    assert "next: fill in" not in again.stderr
    (package.with_suffix("") / "task2" / REPORT).write_bytes(b"%PDF-1.4\n")
    last = tutti_here("submission", "make", run, "s1", "--json")
    assert json.loads(last.stdout) == {"package": str(package), "errors": [], "warnings": []}
    with zipfile.ZipFile(package) as archive:
        assert {name.split("/")[1] for name in archive.namelist()} == {ONE, REPORT}  # nothing is left of the others
        assert yaml.safe_load(archive.read(f"task2/{META}"))["submission"]["name"] == "One"
    assert (*codes, tutti_here("submission", "check", package).exit_code) == (0, 2, 0)
    mine = form.rename(tmp_path / "mine.yaml")
    form.write_text("authors: [")
    elsewhere = tutti_here("submission", "make", run, "s1", "--label", "Li_SJTU_task2", "--meta", mine)
    assert elsewhere.stdout == f"{run / 'package' / 'Li_SJTU_task2.zip'}\n", elsewhere.stderr


def edit(path, change):
    return lambda folder: (folder / path).write_text(change((folder / path).read_text()))


RESULT, FORM = "systems/s1/result.json", "package/authors.yaml"
TRAINING = clip_paths("fan", labelled=True)[:12]


@pytest.mark.parametrize(
    ("spoil", "options", "message"),
    [
        (lambda run: shutil.rmtree(run / "systems"), {}, "no results in it"),
        (lambda run: None, {"systems": ["s3"]}, "no result of system 's3'; there are s1, s2"),
        (lambda run: (run / "systems/s1/fused.parquet").write_bytes(b"x"), {}, "s1/fused.parquet: damaged"),
        (edit(RESULT, lambda s: "{"), {}, "result.json: no result of a fusion"),
        (edit(RESULT, lambda s: s.replace('"subsystems"', '"trees"')), {}, "s1: made by another version of tutti"),
        (edit(RESULT, lambda s: '{"transductive": true,' + s[1:]), {}, "statistics of test clips, which the challenge"),
        (edit(RESULT, lambda s: s.replace("d" * 8, "e" * 8)), {}, r"different data sets: s1 \(e{8}\), s2 \(d{8}\)"),
        (lambda run: None, {"label": "Jiang THU"}, "'Jiang THU' is no label such as Jiang_THU_task2"),
        (lambda run: None, {"label": "../x_y_task2"}, "is no label"),
        (edit(FORM, lambda s: "authors: ["), {}, "authors.yaml: not YAML"),
        (edit(FORM, lambda s: "colour: red"), {}, "yaml: colour: unknown key"),
        (copied_systems, {}, "5 systems, the challenge takes 4"),
        (lambda run: write_result(run, "demo", TRAINING, labelled=False), {"systems": ["demo"]}, "have no test clips"),
    ],
)
def test_what_cannot_be_packed(run, spoil, options, message):
    (run / "package").mkdir()
    (run / FORM).write_text(yaml.safe_dump(AUTHORS))
    spoil(run)
    with pytest.raises(InputError, match=message):
        make_package(run, **{"label": LABEL, **options})


SCORES, DECISIONS, META = f"{ONE}/{FILES[0]}", f"{ONE}/{FILES[2]}", f"{ONE}/{ONE}.meta.yaml"
MISSPELT, UNTESTED = SCORES.replace("fan", "Fan"), SCORES.replace("_test", "")
CLIP = "section_00_source_test_anomaly_0000_noAttribute.wav"


@pytest.fixture
def package(case, tmp_path):
    return Path(shutil.copytree(case.folder, tmp_path / "package"))


def zipped(package):
    return Path(shutil.make_archive(f"{package}-again", "zip", package))


def off(cell, by):
    result = re.compile(rf"(pump:.*?{cell}: )(\S+)", re.DOTALL)
    return edit(META, lambda s: result.sub(lambda m: f"{m[1]}{float(m[2]) + by:.2f}", s))


def copied(label):
    def mutate(task):
        shutil.copytree(task / ONE, task / label)
        meta = (task / label / Path(META).name).rename(task / label / f"{label}.meta.yaml")
        meta.write_text(meta.read_text().replace(ONE, label))

    return mutate


def moved(*paths):
    return lambda task: [(task / a).rename(task / b) for a, b in zip(paths[::2], paths[1::2], strict=True)]


# name → how to break it, the file that must be named, the cause that must be told
BROKEN = {
    "no tables of fan": (moved(SCORES, "1.pdf", DECISIONS, "2.pdf"), DECISIONS, "missing; there are clips .*data"),
    "a name misspelt": (moved(SCORES, MISSPELT), MISSPELT, "no such machine.*; it has fan section 00, pump section"),
    "no table's name": (moved(SCORES, UNTESTED), UNTESTED, "not a table's name; must be anomaly_score_<machine>"),
    "a row is missing": (edit(SCORES, lambda s: s.partition("\n")[2]), SCORES, f"no usable row for {CLIP} of .*data"),
    "a clip of another set": (edit(SCORES, lambda s: s + "section_00_0007.wav,1\n"), SCORES, "no such test clip"),
    "a clip twice": (edit(SCORES, lambda s: s + s.splitlines()[2]), SCORES, "row 21: the clip stands in an earlier"),
    "clips with folders": (edit(SCORES, lambda s: s.replace("sec", "a/sec")), SCORES, "row 1, 2, 3 and 17 more: must"),
    "a header": (edit(SCORES, lambda s: "file,score\n" + s), SCORES, "row 1: must begin with .*no header"),
    "too large for a float": (edit(SCORES, lambda s: s.replace("\n", "e999\n")), SCORES, "row .*: must .* a finite"),
    "bytes": (lambda t: (t / SCORES).write_bytes(b"\xff\0,1\n"), SCORES, ""),
    "an empty table": (edit(SCORES, lambda s: ""), SCORES, "no usable rows"),
    "a probability as decision": (edit(DECISIONS, lambda s: s.replace(",1", ",.7")), DECISIONS, "row .*: the decision"),
    "decisions of another machine": (
        moved(f"{ONE}/{FILES[3]}", DECISIONS), DECISIONS, "no threshold on .*: section_00.* is 0 with score .*, sec",
    ),
    "no meta file": (lambda t: (t / META).unlink(), META, "missing; each system has a meta file"),
    "no YAML": (edit(META, lambda s: s.replace("submission:", "submission: [", 1)), META, "not YAML: .* line"),
    "an alias of itself": (edit(META, lambda s: "a: &a [*a]"), META, "nested too deeply"),
    "another label": (edit(META, lambda s: s.replace(ONE, TWO)), META, f"label is '{TWO}', and the folder is '{ONE}'"),
    "no institute": (edit(META, lambda s: s.replace("affiliation:", "a:")), META, "affiliation: Field required"),
    "a placeholder": (edit(META, lambda s: s.replace("Müller", "todo")), META, "filled in: .*lastname"),
    "a result too high": (off("auc_source", by=0.2), META, "auc_source: not .* instead of"),
    "a result too low": (off("pauc", by=-0.2), META, "pump.pauc: not .* instead of"),
    "a result in words": (edit(META, lambda s: s.replace("pauc: ", "pauc: ~ ")), META, "fan.pauc: not .*: ~ .* ins"),
    "a folder that is no label": (moved(TWO, f"{LABEL}_5"), f"{LABEL}_5", "is no label such as .* numbered 1 to 4"),
    "two teams": (copied("Li_SJTU_task2_3"), "Li_SJTU_task2_3", f"another team's label than {ONE}"),
    "five systems": (lambda t: [copied(f"c_c_task2_{n}")(t) for n in (1, 2, 3)], "package", "5 systems, at most 4"),
    "a system twice": (lambda t: shutil.copytree(t / ONE, t / "again" / ONE), f"again/{ONE}", "the same label as"),
    "nothing in it": (lambda t: shutil.rmtree(t), "package", "no system in it"),
}  # fmt: skip


@pytest.mark.parametrize(("spoil", "place", "cause"), BROKEN.values(), ids=BROKEN)
def test_a_broken_package_is_told_with_file_and_cause_as_folder_and_zip(case, package, spoil, place, cause):
    spoil(package / "task2")
    for path in (package, zipped(package)):
        errors = check_package(path, case.data).errors
        assert any(re.match(rf"[^:]*{re.escape(place)}[^:]*: .*{cause}", error) for error in errors), errors
        assert not any("\n" in error for error in errors)


LEGAL = {
    "what tutti makes": lambda t: None,
    "Windows line ends and empty lines at the end": edit(SCORES, lambda s: s.replace("\n", "\r\n") + "\n\n"),
    "another order": edit(SCORES, lambda s: re.sub("(?m)^(.*),", r'"\1", ', "\n".join(s.split()[::-1]))),
    "another scale": edit(SCORES, lambda s: re.sub(",(.*)", lambda m: f",{1e6 * float(m[1]) - 5e5:+.17E}", s)),
    "decisions as floats": edit(DECISIONS, lambda s: s.replace("\n", ".0\n")),
    "one system": lambda t: shutil.rmtree(t / TWO),
    "not in a folder of the task": moved(ONE, f"../{ONE}", TWO, f"../{TWO}"),
    "further keys": edit(META, lambda s: s.replace("\nsystem:", "\nsystem:\n  front_ends: [{name: AudioSet}]")),
    "a question": edit(META, lambda s: s.replace("name: s1", "name: What is normal?")),
    "results with one digit": edit(META, lambda s: re.sub(r"\b\d+\.\d\d\b", lambda m: f"{float(m[0]):.1f}", s)),
    "further results": edit(META, lambda s: s.replace("    fan:", "    Car: {auc_source: 71.3, mean: 0}\n    fan:")),
    "what one operating system leaves": lambda t: (t / ONE / "._anomaly_score.csv").write_bytes(b"\0"),
    "what another one leaves": lambda t: shutil.copytree(t / ONE, t.parent / "__MACOSX" / ONE),
}


@pytest.mark.parametrize("name", LEGAL)
def test_what_teams_may_do_passes_as_folder_and_zip(case, package, name):
    LEGAL[name](package / "task2")
    for path, data in ((package, case.data), (package, None), (zipped(package), case.data)):
        assert check_package(path, data) == Findings()


def test_the_command_prints_errors_and_what_is_only_odd_and_exits_with_2(case, package):
    task = package / "task2"
    changes = copied(f"{LABEL}_3"), copied(f"{LABEL}_4"), edit(DECISIONS, lambda s: s.replace(",1", ",0"))
    for change in (*changes, edit(META, lambda s: s.replace("fan:", "Fan:")), moved(REPORT, "../notes.txt")):
        change(task)
    odd = check_package(package, case.data)
    for part in (
        f"task2/{DECISIONS}: all clips are decided alike",
        f"task2/{META}: results.development_dataset.fan.auc_source: not stated; it can be",
        f"task2/{LABEL}_4: the same scores as {LABEL}_3",
        "notes.txt: not a file of a package",
        "package: no technical report",
    ):
        assert part in "\n".join(odd.warnings)
    assert odd.errors == []
    for name in ("too large for a float", "a result too high", "a placeholder"):
        BROKEN[name][0](task)
    found = check_package(package, case.data)
    assert len(found.errors) >= 3
    check = ["submission", "check", package, "--data", case.data]
    printed, as_json = tutti_here(*check), tutti_here(*check, "--json")
    assert printed.exit_code == as_json.exit_code == 2
    lines = [f"error: {error}" for error in found.errors] + [f"warning: {warning}" for warning in found.warnings]
    assert printed.stdout.splitlines() == lines
    assert f"Error: {package}: {len(found.errors)} error" in printed.stderr
    assert json.loads(as_json.stdout) == vars(found)
    good = tutti_here("submission", "check", case.folder / "task2" / ONE, "--data", case.data)  # a single system
    assert (good.exit_code, good.stdout) == (0, f"warning: {ONE}: no technical report (PDF) in it\n")


def test_of_an_evaluation_set_the_machines_with_hidden_labels_are_packed_and_the_others_results_told(tmp_path):
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


def test_without_a_data_set_tables_are_held_against_each_other_and_what_is_no_package_is_named(package, tmp_path):
    for name in (FILES[0], FILES[2]):
        edit(f"{TWO}/{name}", lambda s: s.partition("\n")[2])(package / "task2")
    (package / "task2" / TWO / FILES[1]).unlink()
    row, file = f"no usable row for {CLIP} of other tables", "missing; there are clips for it in other tables"
    errors = [f"task2/{TWO}/{name}: {told}" for name, told in zip(FILES, (row, file, row), strict=False)]
    assert check_package(package).errors == errors
    path = zipped(package)
    content = path.read_bytes()
    for damaged in (content[:600] + bytes(20) + content[620:], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match=r"again.zip: cannot be read as a folder or zip file \("):
            check_package(path)
    for place, data, message in ((tmp_path / "0.zip", None, "no such package"), (package, tmp_path, "not a data set")):
        with pytest.raises(InputError, match=message):
            check_package(place, data)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=8))
def test_decisions_are_in_order_if_and_only_if_some_threshold_gives_them(tmp_path, clips):
    (tmp_path / ONE).mkdir(exist_ok=True)
    for name, column in ((SCORES, 0), (DECISIONS, 1)):
        (tmp_path / name).write_text("".join(f"{i}.wav,{clip[column]:d}\n" for i, clip in enumerate(clips)))
    *wrong, no_meta = check_package(tmp_path / ONE).errors
    assert no_meta.endswith("missing; each system has a meta file")
    possible = any(all((score > t) == decision for score, decision in clips) for t in range(-1, 6))
    assert (wrong == []) == possible
