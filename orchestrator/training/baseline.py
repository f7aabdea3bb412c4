"""The baseline of a run's data: a score table in the ledger, made without any network, beside those of the branches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from branches.spec import EMBEDDING_VERSION
from orchestrator.ledger.folders import BASELINES, TABLES, Record, checksums, is_finished, new_folder, write_record
from orchestrator.plan import digest
from orchestrator.training.worker import flat_metrics
from scoring.banks import score_table
from scoring.detectors import SCORING_VERSION, MahalanobisSpec
from scoring.errors import InputError
from scoring.metrics import has_labels, official_metrics
from scoring.table import read_table, write_table

if TYPE_CHECKING:
    from branches.audio.cache import AudioCache

log = logging.getLogger(__name__)

TITLE = "log-mel baseline"
_NAME = "log_mel"
_DETECTOR = MahalanobisSpec(standardised=True)  # else a few loud bands would rule


@contextmanager
def baseline_beside(out: Path, audio: AudioCache, index: pa.Table, dataset: str) -> Iterator[Event]:
    """Score the clips of a run by their log-mel statistics, unless that is done, while the block trains branches.

    It takes two cores about 9 ms for a clip of 10 s, for which no GPU waits. Once the event is set, or the block
    raises, or the disk is full, the rest is left for the next run.

    dataset: fingerprint
    """
    abandoned = Event()
    with ThreadPoolExecutor(1) as beside:
        written = beside.submit(_write_baseline, out, audio, index, dataset, abandoned)
        try:
            yield abandoned
            with suppress(CancelledError):
                written.result()
        except BaseException:
            abandoned.set()
            raise


def _write_baseline(out: Path, audio: AudioCache, index: pa.Table, dataset: str, abandoned: Event) -> None:
    """Where the clips tell no scale there is no baseline."""
    if has_baseline(out, dataset):
        return
    from branches.log_mel import log_mel_statistics  # loads torch

    log.info("%s: log-mel statistics of %d clips", TITLE, len(audio))
    metadata = {"dataset": dataset, "detector": _DETECTOR.model_dump_json()}
    try:
        table = score_table(index, log_mel_statistics(audio, abandoned), _DETECTOR, metadata)
    except InputError as error:
        log.warning("no %s: %s", TITLE, error)
        return
    metrics = flat_metrics(official_metrics(table) if has_labels(table) else None, f"{_DETECTOR.name}.")
    try:
        with new_folder(out, BASELINES, _NAME) as folder:
            (folder / TABLES).mkdir()
            write_table(table, folder / TABLES / f"{_DETECTOR.name}.parquet")
            record = Record(
                name=TITLE,
                identity={"role": "baseline", "dataset": dataset},
                metrics=metrics,
                files=checksums(folder),
                tables=_tables(dataset),
            )
            write_record(folder, record)
    except OSError as error:  # no reason to keep back what the branches gave
        log.warning("no %s: %s; the next run makes it", TITLE, error)


def has_baseline(out: Path, dataset: str) -> bool:
    """Whether the baseline of a data set, by its fingerprint, is in the ledger, intact."""
    return is_finished(out, _NAME, _tables(dataset), BASELINES)


def read_baseline(out: Path, dataset: str) -> dict[str, Any] | None:
    """The baseline's `name` and official metrics (`omega`, `machines`); None if it is not scored, or without labels."""
    if not has_baseline(out, dataset):
        return None
    table = read_table(out / BASELINES / _NAME / TABLES / f"{_DETECTOR.name}.parquet")
    return {"name": TITLE, **official_metrics(table).as_dict()} if has_labels(table) else None


def _tables(dataset: str) -> dict[str, str]:
    return {_DETECTOR.name: digest([dataset, EMBEDDING_VERSION, _DETECTOR.model_dump(), SCORING_VERSION])}
