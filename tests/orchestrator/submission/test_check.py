"""Packages broken in every way we can think of, one at a time; and odd ones that are in order."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.submission.check import Findings, check_package
from scoring.errors import InputError
from tests.commands import tutti_here
from tests.orchestrator.package_case import LABEL, Case, zipped

ONE, TWO = f"{LABEL}_1", f"{LABEL}_2"
SCORES, DECISIONS = "anomaly_score_fan_section_00_test.csv", "decision_result_fan_section_00_test.csv"
META = f"{ONE}.meta.yaml"
DEV = ("results", "development_dataset")
CLIP = "section_00_source_test_anomaly_0000_noAttribute.wav"


@pytest.fixture
def package(case, tmp_path):
    return Path(shutil.copytree(case.folder, tmp_path / "package"))


def edit(name, change, system=ONE):
    """Change a file's text."""

    def mutate(task):
        path = task / system / name
        path.write_text(change(path.read_text()))

    return mutate


def rows(name, change, system=ONE):
    """Change a table's rows, a list of lists that is changed in place or made anew."""

    def mutate(text):
        table = list(csv.reader(io.StringIO(text)))
        table = change(table) or table
        return "".join(",".join(row) + "\n" for row in table)

    return edit(name, mutate, system)


def cell(name, row, column, value):
    return rows(name, lambda table: table[row].__setitem__(column, value))


def put(*keys, to):
    """Set one value of the meta file, or change it by a function; None removes it."""

    def mutate(text):
        content = inner = yaml.safe_load(text)
        for key in keys[:-1]:
            inner = inner[key]
        inner[keys[-1]] = to(inner[keys[-1]]) if callable(to) else to
        if to is None:
            del inner[keys[-1]]
        return yaml.safe_dump(content, allow_unicode=True)

    return edit(META, mutate)


def copied(label):
    """The first system once more under another label, in itself in order."""

    def mutate(task):
        shutil.copytree(task / ONE, task / label)
        text = (task / ONE / META).read_text()
        (task / label / META).unlink()
        (task / label / f"{label}.meta.yaml").write_text(text.replace(ONE, label))

    return mutate


def moved(source, target):
    return lambda task: (task / source).rename(task / target)


def tie(task):
    """The clips on both sides of the threshold, with the same score."""
    decisions = dict(csv.reader((task / ONE / DECISIONS).read_text().splitlines()))
    scores = dict(csv.reader((task / ONE / SCORES).read_text().splitlines()))
    low = max((clip for clip in scores if decisions[clip] == "0"), key=lambda clip: float(scores[clip]))
    high = min((clip for clip in scores if decisions[clip] == "1"), key=lambda clip: float(scores[clip]))
    rows(SCORES, lambda table: [[clip, scores[high] if clip == low else v] for clip, v in table])(task)


# name → how to break it, the file that must be named, the cause that must be told
BROKEN = {
    "a machine without tables": (
        lambda t: [(t / ONE / name).unlink() for name in (SCORES, DECISIONS)],
        DECISIONS,
        "missing; there are clips for it in .*data",
    ),
    "a machine's name misspelt": (
        lambda t: [moved(f"{ONE}/{n}", f"{ONE}/{n.replace('fan', 'Fan')}")(t) for n in (SCORES, DECISIONS)],
        SCORES.replace("fan", "Fan"),
        "no such machine and section in .*; it has fan section 00, pump section 00",
    ),
    "a table's name without test": (
        moved(f"{ONE}/{SCORES}", f"{ONE}/anomaly_score_fan_section_00.csv"),
        "anomaly_score_fan_section_00.csv",
        "not a table's name; must be anomaly_score_<machine>",
    ),
    "a row is missing": (rows(SCORES, lambda t: t[1:]), SCORES, f"no usable row for {CLIP} of .*data"),
    "a clip of another set": (cell(SCORES, 3, 0, "section_00_0007.wav"), SCORES, "no such test clip in .*_0007"),
    "a clip twice": (rows(SCORES, lambda t: [*t, t[2]]), SCORES, "row 21: the clip stands in an earlier row too"),
    "clips with folders": (
        rows(SCORES, lambda t: [[f"fan/test/{c}", v] for c, v in t]),
        SCORES,
        r"row 1, 2, 3 and 17 more: must begin with a clip's bare name",
    ),
    "a header": (rows(SCORES, lambda t: [["file", "score"], *t]), SCORES, "row 1: must begin with .*no header"),
    "three columns": (edit(SCORES, lambda s: s.replace("\n", ",1\n")), SCORES, "row 1, .*: must be `clip,value`"),
    "too large for a float": (cell(SCORES, 19, 1, "1e999"), SCORES, "row 20: must be .* a finite number"),
    "an empty table": (edit(SCORES, lambda s: ""), SCORES, "no usable rows"),
    "a probability as decision": (cell(DECISIONS, 2, 1, "0.7"), DECISIONS, "row 3: the decision is neither"),
    "decisions of another machine": (
        lambda t: shutil.copy(t / ONE / DECISIONS.replace("fan", "pump"), t / ONE / DECISIONS),
        DECISIONS,
        "no threshold on the scores gives these decisions: section_00.* is 0 with score",
    ),
    "a tie cut in two": (tie, DECISIONS, r"no threshold .*: .* is 0 with score (.*), .* is 1 with score \1$"),
    "no meta file": (lambda t: (t / ONE / META).unlink(), META, "missing; each system has a meta file"),
    "no YAML": (edit(META, lambda s: s.replace("submission:", "submission: [", 1)), META, "not YAML: .* line"),
    "YAML that is a list": (edit(META, lambda s: "- label\n- name\n"), META, "Input should be a valid dictionary"),
    "another label": (put("submission", "label", to=TWO), META, f"label is '{TWO}', and the folder is '{ONE}'"),
    "no institute": (put("submission", "authors", 0, "affiliation", to=None), META, "affiliation: Field required"),
    "a placeholder": (put("submission", "authors", 0, "lastname", to="todo"), META, "authors.0.lastname: still to"),
    "a long abbreviation": (put("submission", "abbreviation", to="a" * 11), META, "abbreviation: .*at most 10"),
    "results of no machine": (put(*DEV, to={}), META, "development_dataset: .*at least 1"),
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


def test_a_valid_package_passes_as_folder_zip_and_single_system(case, package):
    for path, data in ((case.folder, case.data), (case.folder, None), (zipped(package), case.data)):
        assert check_package(path, data) == Findings(), path
    alone = check_package(case.folder / "task2" / ONE, case.data)
    assert alone == Findings(warnings=[f"{ONE}: no technical report (PDF) in it"])


LEGAL = {
    "Windows line ends and empty lines at the end": edit(SCORES, lambda s: s.replace("\n", "\r\n") + "\n\n"),
    "quoted names in another order": rows(SCORES, lambda t: [[f'"{c}"', f" {v}"] for c, v in t[::-1]]),
    "scores on another scale": rows(SCORES, lambda t: [[c, f"{1e6 * float(v) - 5e5:+.17E}"] for c, v in t]),
    "decisions as floats": rows(DECISIONS, lambda t: [[c, f"{int(v)}.0"] for c, v in t]),
    "one system": lambda t: shutil.rmtree(t / TWO),
    "not in a folder of the task": lambda t: [moved(s, f"../{s}")(t) for s in (ONE, TWO)],
    "further keys": put("system", "front_ends", to=[{"name": "AudioSet", "share": "100 %"}]),
    "a question": put("submission", "name", to="What is normal?"),
    "results with one digit": edit(META, lambda s: re.sub(r"\b\d+\.\d\d\b", lambda m: f"{float(m[0]):.1f}", s)),
    "further machines' results and means": put(*DEV, "ToyCar", to={"auc_source": 71.3, "mean": 0}),
    "what one operating system leaves": lambda t: (t / ONE / "._anomaly_score.csv").write_bytes(b"\0"),
    "what another one leaves": lambda t: shutil.copytree(t / ONE, t.parent / "__MACOSX" / ONE),
}


@pytest.mark.parametrize("name", LEGAL)
def test_what_other_teams_may_do_passes(case, package, name):
    LEGAL[name](package / "task2")
    assert check_package(package, case.data) == Findings()


def test_warnings_for_what_is_odd(case, package):
    task = package / "task2"
    for label in (f"{LABEL}_3", f"{LABEL}_4"):
        copied(label)(task)
    rows(DECISIONS, lambda t: [[c, "0"] for c, _ in t])(task)
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
    names = ["too large for a float", "a probability as decision", "a result too high", "a placeholder"]
    for name in names:
        BROKEN[name][0](package / "task2")
    errors = check_package(package, case.data).errors
    for name in names:
        assert any(re.search(BROKEN[name][2], error) for error in errors), name
    run = tutti_here("submission", "check", package, "--data", case.data)
    assert run.exit_code == 2
    assert run.stdout.splitlines() == [f"error: {error}" for error in errors]
    assert f"Error: {package}: {len(errors)} errors, 0 warnings" in run.stderr
    as_json = tutti_here("submission", "check", package, "--data", case.data, "--json")
    assert as_json.exit_code == 2
    assert json.loads(as_json.stdout) == {"errors": errors, "warnings": []}
    good = tutti_here("submission", "check", case.folder / "task2" / ONE)
    assert (good.exit_code, good.stdout) == (0, f"warning: {ONE}: no technical report (PDF) in it\n")
    assert json.loads(tutti_here("submission", "check", case.folder, "--json").stdout) == {"errors": [], "warnings": []}


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
        rows(name, lambda t: t[1:], TWO)(task)
    (task / TWO / SCORES.replace("fan", "pump")).unlink()
    assert check_package(package).errors == [
        f"task2/{TWO}/{SCORES}: no usable row for {CLIP} of other tables",
        f"task2/{TWO}/{SCORES.replace('fan', 'pump')}: missing; there are clips for it in other tables",
        f"task2/{TWO}/{DECISIONS}: no usable row for {CLIP} of other tables",
    ]


def test_damaged_zip_files(package, tmp_path):
    path = zipped(package)
    content = path.read_bytes()
    for spoilt in (content.replace(b".wav,", b".wow,", 1), content[: len(content) // 2]):
        path.write_bytes(spoilt)
        with pytest.raises(InputError, match=re.escape(f"{path}: cannot be read as a folder or zip file (")):
            check_package(path)
    with pytest.raises(InputError, match="no such package"):
        check_package(tmp_path / "nothing.zip")
    with pytest.raises(InputError, match="not a data set"):
        check_package(package, tmp_path)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)),
    st.sampled_from([SCORES, DECISIONS, META]),
)
def test_whatever_stands_in_a_file_is_a_finding_and_no_crash(case, package, content, name):
    system = package / "task2" / ONE
    whole = (case.folder / "task2" / ONE / name).read_bytes()
    for text in (content, whole[:500] + content + whole[500:], whole):
        (system / name).write_bytes(text)
        errors = check_package(system, case.data).errors
        assert all(error.startswith(f"{ONE}/{name}: ") for error in errors)
    assert errors == []


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("a: &a [*a]", "nested too deeply"),
        ("[" * 500, "nested too deeply"),
        ("results: {development_dataset: {fan: {auc_source: 1" + "0" * 400 + "}}}", "auc_source: not what the scores"),
        ("day: 2026-13-45", "month must be in"),
    ],
)
def test_traps_in_a_meta_file(case, package, content, cause):
    (package / "task2" / ONE / META).write_text(content)
    assert any(cause in error for error in check_package(package, case.data).errors)


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
