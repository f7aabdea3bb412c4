"""What MLflow shows of the ledger's records: figures under names that its UI groups, and a description.

A slash in a metric's name makes a section in the UI, so what people compare stands alone and comes first: `omega`,
which every run has, and `loss`. Beside them `hmean/<machine>`, `auc_source/<machine>`, … and `cost/…`.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from orchestrator.fuse.result import read_result, result_folders, rows_of_methods
from orchestrator.ledger.folders import TABLES, Record, records

# Of what is shown. With another number everything is sent anew, once.
FORM = 2
CELLS = {"auc_source": "AUC source", "auc_target": "AUC target", "pauc": "pAUC", "hmean": "harmonic mean"}
_COST = ("seconds", "cpus", "gpus", "gpu_memory_gib")
_ENDED = {"FAILED": "Failed"}
_ROWS = 30  # of a table in a description, which MLflow cuts at 8000 characters
_TEXT = 7500
_NAME = 200  # characters of a metric's name, of which MLflow takes 250
_OTHER_CHARACTERS = re.compile(r"[^\w./ -]")
_DECIMALS = 3  # of a metric, which the UI would cut at the width of its column; the tables have all


@dataclass(frozen=True)
class Table:
    """A table of the description."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]


@dataclass(frozen=True)
class Shown:
    """What one MLflow run shows.

    text: paragraphs in Markdown
    """

    name: str
    tags: dict[str, str]
    text: list[str]
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    tables: list[Table] = field(default_factory=list)

    @property
    def note(self) -> str:
        """The run's description in Markdown."""
        return "\n\n".join([*self.text, *map(_markdown, self.tables)])[:_TEXT]


def shown(folder: Path, record: Record) -> Shown:
    """What MLflow shows of the record in a folder of the ledger, or of the run that has the ledger in `folder`."""
    makers = {"branch": _branch, "fusion": _system}
    complete = makers.get(record.identity["role"], _run)(folder, record)
    return replace(complete, metrics=_accepted(complete.metrics))


def _accepted(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under names that MLflow takes: few characters, and not many; two names never become one."""
    names = {name: _OTHER_CHARACTERS.sub("_", name)[:_NAME] for name in metrics}
    changed = {name for name, accepted in names.items() if accepted != name}
    twice = {accepted for accepted, count in Counter(names.values()).items() if count > 1}
    for name in changed & {name for name, accepted in names.items() if accepted in twice}:
        names[name] += f"_{hashlib.sha256(name.encode()).hexdigest()[:4]}"
    return {names[name]: value for name, value in metrics.items()}


def detectors(record: Record) -> list[str]:
    """A branch's detectors; the one whose Omega counts as the branch's, the first that scored it, comes first."""
    files = [Path(file).stem for file in record.files if file.startswith(f"{TABLES}/")]
    measured = [name.removesuffix(".omega") for name in record.metrics if name.endswith(".omega")]
    return sorted(files, key=lambda name: measured.index(name) if name in measured else len(measured))


def _branch(folder: Path, record: Record) -> Shown:
    names = detectors(record)
    figures = {name: _figures(record, name, names) for name in names}
    measured = {name: values for name, values in figures.items() if "omega" in values}
    metrics: dict[str, float] = {}
    for i, (name, values) in enumerate(figures.items()):
        metrics |= values if i == 0 else {f"{name}/{key}": value for key, value in values.items()}
    metrics |= {f"cost/{name}": round(record.metrics[name], _DECIMALS) for name in _COST if name in record.metrics}
    omegas = ", ".join(f"{values['omega']:.2f} % with {name}" for name, values in measured.items())
    text = [f"**Omega {omegas}.**"] if omegas else []
    if record.status in _ENDED:
        text = [
            f"**{_ENDED[record.status]}:** {_plain(record.tags.get('failure', ''))}",
            "The artifact `reason.txt` has the whole of it.",
        ]
    took = (
        f" Took {record.metrics['seconds']:.0f} s on {_place(record.metrics)}." if "seconds" in record.metrics else ""
    )
    text.append(f"Branch of {record.tags.get('system', '')}: {_recipe(record)}.{took}")
    return Shown(
        record.name,
        {"configuration": record.name.rpartition("/")[0], "detector": ", ".join(names)},
        text,
        {key: value for key, value in record.params.items() if value != "null"},
        metrics,
        [_machines(f"By machine, {name}, %", values) for name, values in measured.items()],
    )


def _figures(record: Record, detector: str, names: Sequence[str]) -> dict[str, float]:
    """A detector's figures by shown name: `omega`, `hmean/fan`; names in the record begin with the detector's."""
    figures = {}
    for name, value in record.metrics.items():
        owners = [other for other in names if name.startswith(f"{other}.")]
        if owners and max(owners, key=len) == detector:
            figures[name.removeprefix(f"{detector}.")] = round(value, _DECIMALS)
    return _grouped(figures)


def _grouped(figures: Mapping[str, float]) -> dict[str, float]:
    """`fan.hmean`, `omega` → `omega`, `hmean/fan`; what matters most comes first."""
    named = {}
    for name, value in figures.items():
        machine, _, cell = name.rpartition(".")
        named[f"{cell}/{machine}" if machine else cell] = value
    order = ["omega", "hmean", *CELLS]
    return dict(sorted(named.items(), key=lambda item: (order.index(item[0].partition("/")[0]), item[0])))


def _recipe(record: Record) -> str:
    names = ("objective.name", "strategy.name", "pooling.name", "channel", "backbone.path")
    parts = [record.params[name] for name in names if record.params.get(name, "null") != "null"]
    return ", ".join([*parts, f"seed {record.params.get('seed', '–')}"])


def _place(metrics: Mapping[str, float]) -> str:
    held = [f"{metrics[name]:g} {name[:-1].upper()}" for name in ("cpus", "gpus") if metrics.get(name)]
    return " and ".join(held) or "an unknown machine"


def _machines(title: str, figures: Mapping[str, float]) -> Table:
    names = sorted({name.partition("/")[2] for name in figures if "/" in name})
    rows = [(name, *(figures.get(f"{cell}/{name}") for cell in CELLS)) for name in names]
    return Table(title, ("machine", *CELLS.values()), rows)


def _system(folder: Path, record: Record) -> Shown:
    result = read_result(folder)
    delivered, measured = result["delivered"], result["machines"]
    methods = rows_of_methods(result)
    held_out = measured["lomo"] is not None
    figures = _grouped(_flat(measured["lomo"] if held_out else measured["in_sample"]))
    weights = {f"{s}/{c}": w for s, cs in delivered["weights"].items() for c, w in cs.items()}
    omega = {"omega": result["omega"], "omega_in_sample": delivered["in_sample"]}
    lomo = {f"methods/{name}": values["lomo"] for name, values in result["methods"].items()}
    text = [_plain(result["description"]), f"**{_omega_line(result)}**", f"{_plain(result['headline'])}."]
    if result["missing"]:
        text.append(f"Fused without {', '.join(result['missing'])}: these branches failed or were stopped.")
    tables = [Table("Weights", ("configuration", "weight"), list(weights.items()))]
    if figures:
        title = "By machine, held out, %" if held_out else "By machine, in-sample, %"
        tables.insert(0, _machines(title, figures))
    if result["methods"]:
        tables.append(Table("Methods, Omega, %", ("method", "in-sample", "LOMO"), methods))
    metrics = {**omega, **figures, **lomo, **{f"weights/{name}": weight for name, weight in weights.items()}}
    rounded = {name: round(value, _DECIMALS) for name, value in metrics.items() if value is not None}
    return Shown(record.identity["system"], {}, [t for t in text if t], {}, rounded, tables)


def _flat(machines: Mapping[str, Mapping[str, float | None]] | None) -> dict[str, float]:
    return {f"{m}.{cell}": v for m, cells in (machines or {}).items() for cell, v in cells.items() if v is not None}


def _omega_line(result: Mapping[str, Any]) -> str:
    delivered = result["delivered"]
    if delivered["in_sample"] is None:
        return "No labels to measure it by"
    if delivered["lomo"] is None:
        return f"Omega {delivered['in_sample']:.2f} %, with weights that no label has chosen"
    low, high = delivered["ci"] or (None, None)
    interval = "" if low is None else f" (95 % interval {low:.1f} to {high:.1f})"
    return f"Omega {delivered['lomo']:.2f} % on held-out machines{interval}; {delivered['in_sample']:.2f} % in-sample"


def _run(folder: Path, record: Record) -> Shown:
    results = [read_result(system) for system in result_folders(folder)]
    branches = [branch for _, branch in records(folder) if branch.identity["role"] == "branch"]
    ended = {status: [branch for branch in branches if branch.status == status] for status in ("FINISHED", *_ENDED)}
    counts = [f"{len(ended['FINISHED'])} branches finished, {len(ended['FAILED'])} failed"]
    text = [f"{', '.join(counts)}."]
    for status, name in _ENDED.items():
        text += [f"{name}: {branch.name}: {_plain(branch.tags['failure'])}" for branch in ended[status][:_ROWS]]
    if (folder / "report.html").exists():
        text.append("`report.html` among the artifacts has figures and intervals.")
    rows = [(r["system"], len(r["branches"]), r["delivered"]["in_sample"], r["delivered"]["lomo"]) for r in results]
    omegas = [omega for result in results if (omega := result["omega"]) is not None]
    tables = [Table("Systems, Omega, %", ("system", "score tables", "in-sample", "LOMO"), rows)] if rows else []
    return Shown(record.name, {}, text, {}, {"omega": round(max(omegas), _DECIMALS)} if omegas else {}, tables)


def _plain(text: str) -> str:
    """Text that Markdown leaves as it is, in one paragraph."""
    return re.sub(r"([*<>|`\[\]])", r"\\\1", " ".join(text.split()))


def _markdown(table: Table) -> str:
    lines = [f"| {' | '.join(table.header)} |", "|---" + "|--:" * (len(table.header) - 1) + "|"]
    lines += [f"| {' | '.join(_plain(_cell(value)) for value in row)} |" for row in table.rows[:_ROWS]]
    rest = len(table.rows) - _ROWS
    return "\n".join([f"#### {table.title}", "", *lines, *([f"\nand {rest} more"] if rest > 0 else [])])


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return str(value) if not isinstance(value, float) else f"{value:.3f}" if abs(value) <= 1 else f"{value:.2f}"
