"""Packages broken in every way we can think of, one at a time; and odd ones that are in order."""

import csv
import io
import re
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.submission.check import check_package
from orchestrator.submission.findings import Findings
from orchestrator.submission.score_files import Pairs, check_decisions
from orchestrator.submission.stated import read_meta
from scoring.errors import InputError
from scoring.metrics import harmonic_mean
from tests.commands import tutti_here
from tests.orchestrator.package_case import LABEL, Case, zipped

ONE, TWO = f"{LABEL}_1", f"{LABEL}_2"
SCORES, DECISIONS = "anomaly_score_fan_section_00_test.csv", "decision_result_fan_section_00_test.csv"
META = f"{ONE}.meta.yaml"


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return Case(tmp_path_factory.mktemp("case"))


@pytest.fixture
def package(case, tmp_path):
    return Path(shutil.copytree(case.folder, tmp_path / "package"))


def edit(name, change, system=ONE):
    """Change a file's text."""

    def mutate(task):
        path = task / system / name
        path.write_bytes(change(path.read_bytes().decode()).encode("utf-8", "surrogateescape"))

    return mutate


def rows(name, change, system=ONE):
    """Change a table's rows, a list of lists that are changed in place."""

    def mutate(text):
        table = list(csv.reader(io.StringIO(text)))
        table = change(table) or table
        return "".join(",".join(row) + "\n" for row in table)

    return edit(name, mutate, system)


def cell(name, row, column, value):
    return rows(name, lambda table: table[row].__setitem__(column, value))


def meta(change, system=ONE):
    """Change what the meta file says, a mapping that is changed in place."""

    def mutate(text):
        content = yaml.safe_load(text)
        change(content)
        return yaml.safe_dump(content, allow_unicode=True)

    return edit(f"{system}.meta.yaml", mutate, system)


def put(*keys, to):
    """Set one value of the meta file."""

    def change(content):
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = to

    return meta(change)


def drop(*keys):
    def change(content):
        for key in keys[:-1]:
            content = content[key]
        del content[keys[-1]]

    return meta(change)


def move(source, target):
    return lambda task: (task / source).rename(task / target)


def copies(*labels):
    return lambda task: [shutil.copytree(task / ONE, task / label) for label in labels]


def relabel(task):
    """The second system under another team's name, in itself in order."""
    move(TWO, "Li_SJTU_task2_2")(task)
    move(f"Li_SJTU_task2_2/{TWO}.meta.yaml", "Li_SJTU_task2_2/Li_SJTU_task2_2.meta.yaml")(task)
    edit("Li_SJTU_task2_2.meta.yaml", lambda text: text.replace(TWO, "Li_SJTU_task2_2"), "Li_SJTU_task2_2")(task)


def swap_one_decision(table):
    table.sort(key=lambda row: row[1], reverse=True)
    table[0][1] = "0"


def invert(table):
    for row in table:
        row[1] = str(1 - int(row[1]))


def tie(task):
    """One clip on each side of the threshold, with the same score."""
    decisions = dict(csv.reader((task / ONE / DECISIONS).read_text().splitlines()))
    scores = {clip: float(value) for clip, value in csv.reader((task / ONE / SCORES).read_text().splitlines())}
    low = max((clip for clip in scores if decisions[clip] == "0"), key=scores.__getitem__)
    high = min((clip for clip in scores if decisions[clip] == "1"), key=scores.__getitem__)
    rows(SCORES, lambda t: [[c, str(scores[high]) if c == low else v] for c, v in t])(task)
    put(
        "results", "development_dataset", to={m: dict.fromkeys(("auc_source", "auc_target", "pauc")) for m in MACHINES}
    )(task)


MACHINES = ("fan", "pump")
DEV = ("results", "development_dataset")
AUTHOR = ("submission", "authors", 0)
CLIP = "section_00_source_test_anomaly_0000_noAttribute.wav"

# name → how to break it, the file that must be named, the cause that must be told
BROKEN = {
    "no score table": (lambda t: (t / ONE / SCORES).unlink(), SCORES, "missing; each machine and section has both"),
    "no decision table": (lambda t: (t / ONE / DECISIONS).unlink(), DECISIONS, "missing; each machine"),
    "a machine without tables": (
        lambda t: [(t / ONE / name).unlink() for name in (SCORES, DECISIONS)],
        SCORES,
        "missing; .* has test clips for it",
    ),
    "a machine's name misspelt": (
        lambda t: [move(f"{ONE}/{n}", f"{ONE}/{n.replace('fan', 'Fan')}")(t) for n in (SCORES, DECISIONS)],
        SCORES.replace("fan", "Fan"),
        "no such machine and section in .*; it has fan section 00, pump section 00",
    ),
    "a section that is not there": (
        lambda t: [move(f"{ONE}/{n}", f"{ONE}/{n.replace('_00_', '_01_')}")(t) for n in (SCORES, DECISIONS)],
        SCORES.replace("_00_", "_01_"),
        "no such machine and section",
    ),
    "a table's name without test": (
        move(f"{ONE}/{SCORES}", f"{ONE}/anomaly_score_fan_section_00.csv"),
        "anomaly_score_fan_section_00.csv",
        "not a table's name",
    ),
    "a section of one digit": (
        move(f"{ONE}/{SCORES}", f"{ONE}/anomaly_score_fan_section_0_test.csv"),
        "anomaly_score_fan_section_0_test.csv",
        "not a table's name",
    ),
    "a row is missing": (rows(SCORES, lambda t: t[1:]), SCORES, f"19 usable rows for 20 test clips; without {CLIP}"),
    "a clip of another set": (cell(SCORES, 3, 0, "section_00_0007.wav"), SCORES, "row 4: no such test clip in .*0007"),
    "a training clip": (
        rows(SCORES, lambda t: [*t, ["section_00_source_train_normal_0000_noAttribute.wav", "0.5"]]),
        SCORES,
        "row 21: no such test clip in",
    ),
    "a clip twice": (rows(SCORES, lambda t: [*t, t[2]]), SCORES, "row 21: the clip stands in an earlier row too"),
    "a clip twice, decided": (rows(DECISIONS, lambda t: [*t, t[2]]), DECISIONS, "row 21: the clip stands in an"),
    "clips with folders": (
        rows(SCORES, lambda t: [[f"fan/test/{c}", v] for c, v in t]),
        SCORES,
        r"row 1: the first column must be the bare name.*row 2, 3, 4 and 16 more",
    ),
    "a header": (rows(SCORES, lambda t: [["file", "score"], *t]), SCORES, "row 1: a header; the tables have none"),
    "semicolons": (edit(SCORES, lambda s: s.replace(",", ";")), SCORES, "row 1: 1 columns instead of 2"),
    "decimal commas": (edit(SCORES, lambda s: s.replace("0.", "0,")), SCORES, "row .*: 3 columns instead of 2"),
    "an index column": (
        edit(SCORES, lambda s: "".join(f"{i},{r}\n" for i, r in enumerate(s.splitlines()))),
        SCORES,
        "row 1: 3 columns instead of 2",
    ),
    "an empty line": (edit(SCORES, lambda s: s.replace("\n", "\n\n", 1)), SCORES, "row 2: empty line"),
    "not a number": (cell(SCORES, 4, 1, "high"), SCORES, "row 5: the value is not a finite number: .*high"),
    "nan": (cell(SCORES, 0, 1, "nan"), SCORES, "row 1: the value is not a finite number: .*nan"),
    "infinity": (cell(SCORES, 19, 1, "-inf"), SCORES, "row 20: the value is not a finite number"),
    "too large for a float": (cell(SCORES, 19, 1, "1e999"), SCORES, "row 20: the value is not a finite number"),
    "an empty value": (cell(SCORES, 1, 1, ""), SCORES, "row 2: the value is not a finite number"),
    "empty table": (edit(SCORES, lambda s: ""), SCORES, "no usable rows"),
    "a byte order mark": (edit(SCORES, lambda s: "\ufeff" + s), SCORES, "byte order mark"),
    "UTF-16": (lambda t: (t / ONE / SCORES).write_text("a.wav,1\n", "utf-16"), SCORES, "not UTF-8 text"),
    "a decision of 2": (cell(DECISIONS, 2, 1, "2"), DECISIONS, "row 3: the decision is neither 0 nor 1"),
    "a probability as decision": (cell(DECISIONS, 2, 1, "0.7"), DECISIONS, "row 3: the decision is neither"),
    "words as decisions": (
        rows(DECISIONS, lambda t: [[c, "anomaly" if v == "1" else "normal"] for c, v in t]),
        DECISIONS,
        "row 1: the value is not a finite number.*row 2",
    ),
    "a decision against the scores": (rows(DECISIONS, swap_one_decision), DECISIONS, "no threshold on the scores"),
    "decisions the wrong way round": (rows(DECISIONS, invert), DECISIONS, "wrong way round"),
    "decisions of another machine": (
        lambda t: shutil.copy(t / ONE / DECISIONS.replace("fan", "pump"), t / ONE / DECISIONS),
        DECISIONS,
        "no threshold on the scores gives these decisions: section_00.* is 0 with score",
    ),
    "a tie cut in two": (tie, DECISIONS, r"a tie at the threshold is decided both ways: .*\(row \d+\) is 0 .* is 1"),
    "scores of another machine": (
        lambda t: [shutil.copy(t / ONE / n.replace("fan", "pump"), t / ONE / n) for n in (SCORES, DECISIONS)],
        META,
        "fan: not what the scores give: auc_source",
    ),
    "no meta file": (lambda t: (t / ONE / META).unlink(), META, "missing; each system has a meta file"),
    "two meta files": (lambda t: shutil.copy(t / ONE / META, t / ONE / "old.yaml"), "old.yaml", "a second meta file"),
    "a lonely meta file": (lambda t: shutil.copy(t / ONE / META, t / "x.meta.yaml"), "x.meta.yaml", "to no system"),
    "no YAML": (edit(META, lambda s: s.replace("submission:", "submission: [", 1)), META, "not YAML: .* line"),
    "YAML that is a list": (edit(META, lambda s: "- label\n- name\n"), META, "not a mapping"),
    "another label": (put("submission", "label", to=TWO), META, f"submission.label is '{TWO}', the folder is '{ONE}'"),
    "no label": (drop("submission", "label"), META, "submission.label: missing"),
    "no authors": (drop("submission", "authors"), META, "submission.authors: missing"),
    "authors empty": (put("submission", "authors", to=[]), META, "submission.authors: .*at least 1"),
    "no affiliation": (drop(*AUTHOR, "affiliation"), META, "submission.authors.0.affiliation: missing"),
    "no institute": (drop(*AUTHOR, "affiliation", "institute"), META, "authors.0.affiliation.0.institute: missing"),
    "no e-mail address": (put(*AUTHOR, "email", to="jiang"), META, "authors.0.email: not an e-mail"),
    "placeholders": (
        put(*AUTHOR, "lastname", to="TO BE FILLED IN"),
        META,
        "submission.authors.0.lastname: still to be filled in",
    ),
    "to do": (put("submission", "name", to="TODO"), META, "submission.name: still to be filled in"),
    "a long abbreviation": (put("submission", "abbreviation", to="a" * 11), META, "abbreviation: .*at most 10"),
    "no description": (drop("system", "description"), META, "system.description: missing"),
    "no complexity": (drop("system", "complexity"), META, "system.complexity: missing"),
    "negative parameters": (put("system", "complexity", "total_parameters", to=-1), META, "parameters: .*greater"),
    "no results": (drop("results"), META, "results: missing"),
    "results of no machine": (put(*DEV, to={}), META, "development_dataset: .*at least 1"),
    "a machine without results": (drop(*DEV, "fan"), META, "development_dataset.fan: missing; its scores are in"),
    "a cell is missing": (drop(*DEV, "fan", "pauc"), META, "development_dataset.fan.pauc: missing"),
    "an AUC above 100": (put(*DEV, "fan", "auc_source", to=101.2), META, "fan.auc_source: 101.2 is out of range"),
    "a negative AUC": (put(*DEV, "fan", "auc_target", to=-3.0), META, "fan.auc_target: -3.0 is out of range"),
    "a fraction among per cent": (put(*DEV, "fan", "auc_source", to=0.61), META, "0.61 is a fraction among"),
    "an AUC in words": (put(*DEV, "fan", "auc_source", to="61 %"), META, "fan.auc_source: not a number"),
    "an AUC that is not so": (put(*DEV, "fan", "auc_source", to=51.0), META, "auc_source 51.00 instead of"),
    "a wrong mean": (put(*DEV, "overall", to=12.0), META, "overall: 12.0 does not follow from the stated values"),
    "a wrong hmean": (put(*DEV, "fan", "hmean", to=50.0), META, "fan.hmean: 50.0 does not follow"),
    "a wrong mean of a cell": (
        put(*DEV, "average", to={"auc_source": 33.0}),
        META,
        "average.auc_source: 33.0 does not follow",
    ),
    "a folder that is no label": (move(TWO, "system2"), "system2", "'system2' is no label such as Jiang_THU_task2_1"),
    "the fifth system": (move(TWO, f"{LABEL}_5"), f"{LABEL}_5", "is no label such as .* numbered 1 to 4"),
    "another task": (move(TWO, "Jiang_THU_task1_2"), "Jiang_THU_task1_2", "is no label"),
    "two teams": (relabel, "Li_SJTU_task2_2", f"another team's label than {ONE}"),
    "five systems": (copies("c_c_task2_1", "c_c_task2_2", "c_c_task2_3"), "c_c_task2_3", "5 systems, at most 4"),
    "a system twice": (
        lambda t: shutil.copytree(t / ONE, t / "again" / ONE),
        f"again/{ONE}",
        "the same label as task2/|the same label as",
    ),
    "nothing in it": (lambda t: shutil.rmtree(t), "package", "no system in it"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_package_is_told_with_file_and_cause(case, package, name):
    mutate, place, cause = BROKEN[name]
    mutate(package / "task2")
    for form in (package, zipped(package)):
        errors = check_package(form, case.data).errors
        pattern = rf"[^:]*{re.escape(place)}[^:]*: .*{cause}"
        assert any(re.match(pattern, error) for error in errors), errors
        assert not any("\n" in error for error in errors)


def test_a_valid_package_passes_as_folder_zip_and_single_system(case):
    for path, data in ((case.folder, case.data), (case.folder, None), (zipped(case.folder), case.data)):
        assert check_package(path, data) == Findings(), path
    assert check_package(case.zip, case.data).errors == []
    beside = case.folder / "authors.yaml"
    beside.write_text("authors: []")
    assert check_package(case.folder, case.data) == Findings()
    beside.unlink()
    alone = check_package(case.folder / "task2" / ONE, case.data)
    assert alone.errors == []
    assert alone.warnings == [f"{ONE}: no technical report (PDF) in it"]


def test_every_fault_is_told_at_once(case, package):
    names = ["nan", "a decision of 2", "a wrong mean", "no e-mail address", "the fifth system", "a header"]
    for name in names:
        BROKEN[name][0](package / "task2")
    errors = check_package(package, case.data).errors
    for name in names:
        assert any(re.search(BROKEN[name][2].replace("row 1: the value", "row .*: the value"), e) for e in errors), name


LEGAL = {
    "rows in another order": rows(SCORES, lambda t: t[::-1]),
    "Windows line ends": edit(SCORES, lambda s: s.replace("\n", "\r\n")),
    "no last line end": edit(SCORES, lambda s: s.rstrip("\n")),
    "empty lines at the end": edit(SCORES, lambda s: s + "\n\n"),
    "quoted names": rows(SCORES, lambda t: [[f'"{c}"', v] for c, v in t]),
    "a space after the comma": edit(SCORES, lambda s: s.replace(",", ", ")),
    "exponents": rows(SCORES, lambda t: [[c, f"{float(v):+.17E}"] for c, v in t]),
    "scores on another scale": rows(SCORES, lambda t: [[c, repr(1e6 * float(v) - 5e5)] for c, v in t]),
    "decisions as floats": rows(DECISIONS, lambda t: [[c, f"{int(v)}.0"] for c, v in t]),
    "no clip is an anomaly": rows(DECISIONS, lambda t: [[c, "0"] for c, _ in t]),
    "the meta file beside the folder": move(f"{ONE}/{META}", META),
    "a meta file of another name": move(f"{ONE}/{META}", f"{ONE}/meta.yaml"),
    "no report": lambda t: (t / f"{LABEL}.technical_report.pdf").unlink(),
    "systems 1 and 4": lambda t: (
        move(TWO, f"{LABEL}_4")(t),
        edit(f"{TWO}.meta.yaml", lambda s: s.replace(TWO, f"{LABEL}_4"), f"{LABEL}_4")(t),
    ),
    "one system": lambda t: shutil.rmtree(t / TWO),
    "not in a folder of the task": lambda t: [move(s, f"../{s}")(t) for s in (ONE, TWO)],
    "institution": meta(lambda m: m["submission"]["authors"][1].update(affiliation={"institution": "SJTU"})),
    "two affiliations": meta(
        lambda m: m["submission"]["authors"][0].update(affiliation=[{"institute": "THU"}, {"institute": "Huakong"}])
    ),
    "parameters in words": put("system", "complexity", "total_parameters", to="90M"),
    "no MACs": put("system", "complexity", "MACS", to=None),
    "further keys": put("system", "external_datasets", to=[{"name": "AudioSet", "url": "https://example.org"}]),
    "a whole percentage": put("submission", "name", to="100 %"),
    "a pAUC of nought among per cents": put(*DEV, "ToyCar", to={"auc_source": 71.3, "auc_target": 55.0, "pauc": 0.00}),
    "results as fractions": meta(
        lambda m: [cells.update({k: round(v / 100, 4) for k, v in cells.items()}) for cells in _dev(m).values()]
    ),
    "results as fractions of two digits": meta(
        lambda m: [cells.update({k: round(v / 100, 2) for k, v in cells.items()}) for cells in _dev(m).values()]
    ),
    "results with one digit": meta(
        lambda m: [cells.update({k: round(v, 1) for k, v in cells.items()}) for cells in _dev(m).values()]
    ),
    "results by section": meta(lambda m: _dev(m).update({k: {"section_00": v} for k, v in _dev(m).items()})),
    "means": meta(lambda m: _dev(m).update(_true_means(_dev(m)))),
    "further machines' results": put(*DEV, "ToyCar", to={"auc_source": 71.3, "auc_target": 55.0, "pauc": 50.2}),
    "a cell that nobody knows": put(*DEV, "fan", "auc_target", to=None),
    "what a Mac leaves": lambda t: (t / ".DS_Store").write_bytes(b"x"),
}  # fmt: skip


def _dev(content):
    return content["results"]["development_dataset"]


def _true_means(machines):
    cells = [v for cs in machines.values() for v in cs.values()]
    columns = {
        c: round(float(np.mean([cs[c] for cs in machines.values()])), 2) for c in ("auc_source", "auc_target", "pauc")
    }
    return {"harmonic_mean": round(float(harmonic_mean(np.array(cells))), 2), "arithmetic_mean": columns}


@pytest.mark.parametrize("name", LEGAL)
def test_what_other_teams_may_do_passes(case, package, name):
    LEGAL[name](package / "task2")
    for form in (package, zipped(package)):
        assert check_package(form, case.data).errors == []


def test_warnings_for_what_is_odd(case, package):
    for name in ("no clip is an anomaly", "a meta file of another name", "no report", "what a Mac leaves"):
        LEGAL[name](package / "task2")
    shutil.copytree(package / "task2" / ONE, package / "task2" / TWO, dirs_exist_ok=True)
    rows(SCORES, lambda t: [[c, "0.5"] for c, _ in t])(package / "task2")
    (package / "notes.txt").touch()
    warnings = "\n".join(check_package(package).warnings)
    for part in (
        f"task2/{ONE}/{DECISIONS}: all 20 clips are decided 0",
        f"task2/{ONE}/meta.yaml: should be called {META}",
        f"task2/{ONE}/{SCORES}: all scores are 0.5: nothing is told apart",
        "task2/.DS_Store: left behind",
        "notes.txt: not a file of a package",
        "package: no technical report",
    ):
        assert part in warnings


def test_an_evaluation_set_with_hidden_labels(tmp_path):
    """Only the machines with hidden labels are packed; the results are of the others."""
    case = Case(tmp_path, hidden=("Sander", "ToyDrone"))
    tables = {path.name for path in case.folder.rglob("*.csv")}
    assert {
        name.split("_section")[0].removeprefix("anomaly_score_").removeprefix("decision_result_") for name in tables
    } == {
        "Sander",
        "ToyDrone",
    }
    assert check_package(case.folder, case.data).errors == []
    for path in [*case.data.glob("*/train"), case.data / "fan", case.data / "pump"]:
        shutil.rmtree(path)
    assert check_package(case.folder, case.data).errors == []  # as the organisers publish it
    victim = next(case.folder.rglob("anomaly_score_Sander*"))
    victim.write_text("".join(victim.read_text().splitlines(keepends=True)[:-2]))
    (error, other) = check_package(case.folder, case.data).errors
    assert (
        f"{victim.parent.name}/{victim.name}: 18 usable rows for 20 test clips; without section_00_0018.wav, "
        in other + error
    )


def test_without_a_data_set_systems_are_held_against_each_other(package):
    task = package / "task2"
    for name in (SCORES, DECISIONS):
        rows(name, lambda t: [["section_00_0001.wav", t[0][1]], *t[1:]], TWO)(task)
        (task / TWO / name.replace("fan", "pump")).unlink()
    errors = check_package(package).errors
    assert len(errors) == 2
    assert f"{TWO}/{SCORES}: other clips than in {ONE}: section_00_0001.wav, " in errors[0]
    assert f"{TWO}/{SCORES.replace('fan', 'pump')}: missing; {ONE} has it" in errors[1]


def test_a_zip_file_with_backslashes(case, package):
    path = zipped(package)
    entry = zipfile.ZipInfo("task2/a.csv")
    entry.filename = "task2\\a.csv"  # ZipInfo itself would mend it on some systems
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(entry, "section_00_0000.wav,1\n")
    assert [e for e in check_package(path, case.data).errors if e.startswith("task2\\a.csv: a backslash in the path")]


def test_damaged_zip_files(case, package, tmp_path):
    path = zipped(package)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(f"task2/{ONE}/{SCORES}").header_offset
    content[start + 120] ^= 1
    path.write_bytes(content)
    assert any(f"{SCORES}: cannot be unpacked (Bad CRC-32" in e for e in check_package(path, case.data).errors)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="neither a folder nor a zip file"):
        check_package(path)
    with pytest.raises(InputError, match="no such package"):
        check_package(tmp_path / "nothing.zip")
    with pytest.raises(InputError, match="not a data set"):
        check_package(package, tmp_path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(st.binary(max_size=200), st.text(max_size=200).map(str.encode)),
    st.sampled_from([SCORES, DECISIONS, META]),
)
def test_whatever_stands_in_a_file_is_a_finding_and_no_crash(case, package, content, name):
    whole = (package / "task2" / ONE / name).read_bytes()
    try:
        for text in (content, whole[:500] + content + whole[500:]):
            (package / "task2" / ONE / name).write_bytes(text)
            assert all(error.startswith("task2/") for error in check_package(package, case.data).errors)
    finally:
        (package / "task2" / ONE / name).write_bytes(whole)


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        ("a: &a [*a]", "nested too deeply"),
        ("[" * 5000, "nested too deeply"),
        ("results: {development_dataset: {fan: {auc_source: 1" + "0" * 400 + "}}}", "auc_source: not a number"),
        ("day: 2026-13-45", "not YAML: month must be in"),
    ],
)
def test_traps_in_a_meta_file(package, content, cause):
    (package / "task2" / ONE / META).write_text(content)
    assert any(cause in error for error in check_package(package).errors)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=8))
def test_decisions_are_in_order_if_and_only_if_some_threshold_gives_them(clips):
    names = [f"{i}.wav" for i in range(len(clips))]
    scores = Pairs("s.csv", dict(zip(names, (float(s) for s, _ in clips), strict=True)), dict.fromkeys(names, 1))
    decisions = Pairs("d.csv", dict(zip(names, (float(d) for _, d in clips), strict=True)), dict.fromkeys(names, 1))
    findings = Findings()
    check_decisions(scores, decisions, findings)
    possible = any(all((s > t) == d for s, d in clips) for t in np.arange(-0.5, 6))
    assert (findings.errors == []) == possible


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(*[st.floats(50, 100)] * 3), min_size=1, max_size=7), st.integers(1, 3), st.sampled_from([1, 100])
)
def test_means_follow_from_rounded_values(machines, digits, scale):
    names = ("auc_source", "auc_target", "pauc")
    dev = {
        f"m{i}": {name: round(v / scale, digits + (scale == 100)) for name, v in zip(names, cells, strict=True)}
        for i, cells in enumerate(machines)
    }
    mean = float(harmonic_mean(np.array(machines))) / scale
    for stated, right in ((round(mean, digits + (scale == 100)), True), (mean - 3 / scale, False)):
        findings = Findings()
        content = yaml.safe_dump({"results": {"development_dataset": {**dev, "overall": stated}}})
        read_meta("m.yaml", content.encode(), findings)
        wrong = [e for e in findings.errors if "overall" in e]
        assert (wrong == []) == right


def test_the_command_prints_every_finding_and_exits_with_2(case, package):
    for name in ("nan", "to do"):
        BROKEN[name][0](package / "task2")
    run = tutti_here("submission", "check", package, "--data", case.data)
    assert run.exit_code == 2
    errors = check_package(package, case.data).errors
    assert run.stdout.splitlines() == [f"error: {error}" for error in errors]
    assert f"Error: {package}: {len(errors)} errors, 0 warnings" in run.stderr
    as_json = tutti_here("submission", "check", package, "--data", case.data, "--json")
    assert as_json.exit_code == 2
    assert yaml.safe_load(as_json.stdout) == {"errors": errors, "warnings": []}
    good = tutti_here("submission", "check", case.folder, "--json")
    assert good.exit_code == 0, good.stderr
    assert yaml.safe_load(good.stdout) == {"errors": [], "warnings": []}
