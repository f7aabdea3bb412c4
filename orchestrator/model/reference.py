"""The normals of one machine and section, as every member of an ensemble knows them; kept in one file, fitted once."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from branches.spectra import Spectrum
from fusion.scales import on_scale
from orchestrator.model.manifest import REMEDY, Manifest
from scoring.banks import ReferenceBank
from scoring.calibration import check_varied, location_scale
from scoring.decisions import gamma_threshold
from scoring.domains import numbered, parts_of
from scoring.errors import InputError

Array = NDArray[np.float64]


class Reference:
    """What is known of n normals; made by `fit`, or by `load` of what another has saved.

    Parameters
    ----------
    manifest: of the ensemble, with T members
    banks: T, of the same clips
    clips: (n,) names of the recordings
    spectrum: of the recordings; None if it is not known

    Attributes
    ----------
    train_scores: (n,) cross-fitted scores of the normals
    threshold: that a score must exceed
    """

    def __init__(
        self, manifest: Manifest, banks: Sequence[ReferenceBank], clips: NDArray[np.str_], spectrum: Spectrum | None
    ) -> None:
        self._members, self._scale = manifest.members, manifest.scale
        self._banks, self.clips, self.spectrum = banks, clips, spectrum
        self.train_scores: Array = self._contributions([np.empty(0)] * len(banks)).sum(axis=0)
        self.threshold = gamma_threshold(self.train_scores, 1 - manifest.false_alarms)

    @classmethod
    def fit(
        cls,
        manifest: Manifest,
        clips: pa.Table,
        embeddings: Mapping[str, NDArray[np.float32]],
        spectrum: Spectrum | None = None,
    ) -> Self:
        """Of n normal clips with their domain, and embeddings (n, …) by `Member.source`.

        Raises InputError if there are too few clips, or their embeddings or scores do not vary.
        """
        banks, domain = [], clips["domain"].to_numpy()
        with threadpool_limits(1, "blas"):  # many small products, over which threads would wait for each other
            for member in manifest.members:
                banks.append(ReferenceBank.fit(member.detector, embeddings[member.source], domain))
                check_varied(banks[-1].train_scores, member.name)
        reference = cls(manifest, banks, np.array(clips["clip"].to_pylist()), spectrum)
        check_varied(reference.train_scores, "the system")
        return reference

    def save(self, file: Path) -> None:
        """Write everything that scoring needs to an `.npz` file."""
        spectrum = self.spectrum._asdict() if self.spectrum else {}
        arrays = {"clips": self.clips, **spectrum, **numbered(bank.arrays() for bank in self._banks)}
        np.savez(file, allow_pickle=False, **arrays)

    @classmethod
    def load(cls, manifest: Manifest, file: Path) -> Self:
        """What was saved in a file; `InputError` if that is missing or damaged."""
        try:
            with np.load(file) as stored:
                arrays = dict(stored)
            clips, spectrum = arrays.pop("clips"), [arrays.pop(name) for name in Spectrum._fields if name in arrays]
            members = zip(manifest.members, parts_of(arrays), strict=True)
            banks = [ReferenceBank.restored(member.detector, own) for member, own in members]
        except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):  # of NumPy, and of what is not in it
            raise InputError(f"{file}: missing or damaged; {REMEDY}") from None
        return cls(manifest, banks, clips, Spectrum(*spectrum) if spectrum else None)

    def score(self, embeddings: Mapping[str, NDArray[np.float32]]) -> pa.Table:
        """Scores of m other clips from their embeddings (m, …) by `Member.source`; see `Ensemble.score`."""
        pairs = zip(self._members, self._banks, strict=True)
        shares = self._contributions([bank.scores(embeddings[member.source]) for member, bank in pairs])
        n, names = len(self.train_scores), [member.name for member in self._members]
        score = shares.sum(axis=0)[n:]
        parts = [
            [{"branch": name, "contribution": part} for name, part in zip(names, clip, strict=True)]
            for clip in shares[:, n:].T.tolist()
        ]
        return pa.table(
            {
                "score": score,
                "calibrated": location_scale(self.train_scores, score),
                "threshold": np.full(len(score), self.threshold),
                "anomaly": score > self.threshold,
                "contributions": parts,
            }
        )

    def _contributions(self, others: Sequence[Array]) -> Array:
        """What each member has in the scores of normals and others: (T, n + m), from raw scores of these T × (m,)."""
        calibrated = [
            location_scale(bank.train_scores, np.concatenate([bank.train_scores, raw]))
            for bank, raw in zip(self._banks, others, strict=True)
        ]
        # Ranks are taken among the training rows of a machine and section.
        split = ["train"] * len(self._banks[0].train_scores) + ["test"] * len(others[0])
        clips = pa.table({"machine": ["m"] * len(split), "section": [0] * len(split), "split": split})
        weights = np.array([member.weight for member in self._members])
        return weights[:, None] * on_scale(self._scale, clips, np.stack(calibrated))
