"""Packages broken in every way we can think of, one at a time; and odd ones that are in order."""

import json
import re
import shutil
from dataclasses import asdict
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
        moved(f"{ONE}/{SCORES}", f"{ONE}/{SCORES.replace('fan', 'Fan')}"),
        SCORES.replace("fan", "Fan"), "no such machine and section in .*; it has fan section 00, pump section 00",
    ),
    "a table's name without test": (
        moved(f"{ONE}/{SCORES}", f"{ONE}/{SCORES.replace('_test', '')}"),
        SCORES.replace("_test", ""), "not a table's name; must be anomaly_score_<machine>",
    ),
    "a row is missing": (edit(SCORES, lambda s: s.partition("\n")[2]), SCORES, f"no usable row for {CLIP} of .*data"),
    "a clip of another set": (edit(SCORES, lambda s: s + "section_00_0007.wav,1\n"), SCORES, "no such test clip"),
    "a clip twice": (edit(SCORES, lambda s: s + s.splitlines()[2]), SCORES, "row 21: the clip stands in an earlier"),
    "clips with folders": (
        edit(SCORES, lambda s: s.replace("section", "fan/test/section")),
        SCORES, r"row 1, 2, 3 and 17 more: must begin with a clip's bare name",
    ),
    "a header": (edit(SCORES, lambda s: "file,score\n" + s), SCORES, "row 1: must begin with .*no header"),
    "too large for a float": (edit(SCORES, lambda s: s.replace("\n", "e999\n")), SCORES, "row .*: must .* a finite"),
    "an empty table": (edit(SCORES, lambda s: ""), SCORES, "no usable rows"),
    "a probability as decision": (edit(DECISIONS, lambda s: s.replace(",1", ",.7")), DECISIONS, "row .*: the decision"),
    "decisions of another machine": (
        lambda t: shutil.copy(t / ONE / DECISIONS.replace("fan", "pump"), t / ONE / DECISIONS),
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
