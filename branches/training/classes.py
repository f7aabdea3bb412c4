"""The classes a branch learns to tell apart: machine, section and attributes, or clusters where there are none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from branches.data.dataset import class_labels
from branches.spec import ClassesSpec, PseudoLabelsSpec
from scoring.table import groups

# A cluster of fewer clips is a few outliers rather than a condition.
MIN_CLUSTER = 5


def unattributed(train: pa.Table) -> NDArray[np.bool_]:
    """Rows (n,) of a machine and section none of whose clips has an attribute."""
    bare = np.array([not attributes for attributes in train["attributes"].to_pylist()])
    result = np.zeros(len(bare), bool)
    for _, _, rows in groups(train):
        result[rows] = bare[rows].all()
    return result


def classes_of(
    train: pa.Table,
    more: pa.Table,
    embeddings: NDArray[np.floating] | None,
    classes: ClassesSpec,
    seed: int,
) -> tuple[NDArray[np.int64], int]:
    """Classes of training clips and of generated clips beside them.

    Parameters
    ----------
    train, more: rows with machine, section, domain and attributes: n recorded and g generated clips
    embeddings: (n, …) of the recorded ones from a frozen backbone, if machines without attributes are to be
        divided; only their directions count, those of each band for itself
    classes: whether the domain is part of a class, and how many clusters there are
    seed: of k-means

    Returns
    -------
    labels: (n + g,) int64; −1 for a generated clip of a machine that is divided, which has no cluster
    n_classes: how many classes there are
    """
    columns = ["machine", "section", "attributes"]
    both = pa.concat_tables([train.select([*columns, "domain"]), more.select([*columns, "domain"])])
    labels, names = class_labels(both.select(columns))
    keys = np.array(names, object)[labels]
    divided: set[str] = set()
    bare = unattributed(train)
    clusters = None
    if classes.pseudo_labels and embeddings is not None:
        clusters = _clustered(train, bare, keys, embeddings, classes.pseudo_labels, seed)
        divided = set(keys[: len(bare)][bare])
    generated = keys[len(bare) :]
    without = np.array([key in divided for key in generated], bool)
    if classes.domain:
        keys = np.array(
            [f"{key}/{domain}" for key, domain in zip(keys, both["domain"].to_pylist(), strict=True)], object
        )
    if clusters is not None:
        keys[: len(bare)][bare] = clusters
    keys[len(bare) :][without] = None
    names_in_use = sorted({key for key in keys if key is not None})
    numbers = {key: number for number, key in enumerate(names_in_use)}
    return np.array([numbers.get(key, -1) for key in keys], np.int64), len(names_in_use)


def _clustered(
    train: pa.Table,
    bare: NDArray[np.bool_],
    keys: NDArray[np.object_],
    embeddings: NDArray[np.floating],
    spec: PseudoLabelsSpec,
    seed: int,
) -> list[str]:
    """Names of the clusters of the rows that are `bare`.

    Source and target are clustered by themselves, so that ten target clips form classes of their own.
    """
    norm = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    directions = (embeddings / np.maximum(norm, 1e-12)).reshape(len(embeddings), -1)
    domain = np.array(train["domain"].to_pylist(), object)
    cluster_names = np.empty(len(bare), object)
    for _, _, group in groups(train):
        for name in sorted(set(domain[group & bare])):
            rows = np.flatnonzero(group & bare & (domain == name))
            # Copies of one clip cannot be divided.
            distinct = len(np.unique(directions[rows], axis=0))
            most = spec.target if name == "target" else spec.source
            k = min(most, max(1, len(rows) // MIN_CLUSTER), distinct)
            cluster = KMeans(k, n_init=10, random_state=seed).fit_predict(directions[rows])
            cluster_names[rows] = [f"{key}/{name}/cluster_{c:02d}" for key, c in zip(keys[rows], cluster, strict=True)]
    return list(cluster_names[bare])
