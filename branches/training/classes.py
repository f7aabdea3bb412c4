"""The classes a branch learns to tell apart: machine, section and attributes, or clusters where there are none."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.cluster import KMeans

from branches.data.dataset import class_labels
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
    train: pa.Table, more: pa.Table, embeddings: NDArray[np.floating] | None, clusters: int, seed: int
) -> tuple[NDArray[np.int64], int]:
    """Classes of training clips and of generated clips beside them.

    Parameters
    ----------
    train, more: rows with machine, section, domain and attributes: n recorded and g generated clips
    embeddings: (n, E) of the recorded ones from a frozen backbone, if machines without attributes are to be
        divided; only their directions count
    clusters: the most clusters of one machine, section and domain; 0 divides nothing
    seed: of k-means

    Returns
    -------
    labels: (n + g,) int64; −1 for a generated clip of a machine that is divided, which has no cluster
    n_classes: how many classes there are
    """
    columns = ["machine", "section", "attributes"]
    labels, names = class_labels(pa.concat_tables([train.select(columns), more.select(columns)]))
    keys = np.array(names, object)[labels]
    if clusters and embeddings is not None:
        bare = unattributed(train)
        keys[: len(bare)][bare] = _clustered(train, bare, keys, embeddings, clusters, seed)
        divided = set(np.array(names, object)[labels[: len(bare)][bare]])
        keys[len(bare) :] = [None if key in divided else key for key in keys[len(bare) :]]
    names_in_use = sorted({key for key in keys if key is not None})
    numbers = {key: number for number, key in enumerate(names_in_use)}
    return np.array([numbers.get(key, -1) for key in keys], np.int64), len(names_in_use)


def _clustered(
    train: pa.Table,
    bare: NDArray[np.bool_],
    keys: NDArray[np.object_],
    embeddings: NDArray[np.floating],
    clusters: int,
    seed: int,
) -> list[str]:
    """Names of the clusters of the rows that are `bare`.

    Source and target are clustered by themselves, so that ten target clips form classes of their own.
    """
    directions = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    domain = np.array(train["domain"].to_pylist(), object)
    cluster_names = np.empty(len(bare), object)
    for _, _, group in groups(train):
        for name in sorted(set(domain[group & bare])):
            rows = np.flatnonzero(group & bare & (domain == name))
            # Copies of one clip cannot be divided.
            distinct = len(np.unique(directions[rows], axis=0))
            k = min(clusters, max(1, len(rows) // MIN_CLUSTER), distinct)
            cluster = KMeans(k, n_init=10, random_state=seed).fit_predict(directions[rows])
            cluster_names[rows] = [f"{key}/{name}/cluster_{c:02d}" for key, c in zip(keys[rows], cluster, strict=True)]
    return list(cluster_names[bare])
