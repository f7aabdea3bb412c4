"""Objectives: embeddings (B, E) and class labels (B,) → the loss of each clip (B,)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branches.spec import (
    ArcFaceSpec,
    ObjectiveSpec,
    SoftmaxSpec,
    SubcenterArcFaceSpec,
    SubclusterAdaCosSpec,
)

# Of AdaCos; beyond it the softmax is a maximum.
LARGEST_SCALE = 100.0


class Objective(nn.Module):
    """Base of the objectives."""

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Losses (B,)."""
        raise NotImplementedError

    def adapt(self, embeddings: Tensor, labels: Tensor, others: Tensor) -> None:
        """Before the losses of a batch: bring up to date what follows the training instead of the gradient.

        labels (B,) are the classes with the larger share in each clip, others (B,) those with the smaller one.
        """


class Softmax(Objective):
    """Cross-entropy of a linear classifier."""

    def __init__(self, spec: SoftmaxSpec, dim: int, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, n_classes)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Losses (B,)."""
        return F.cross_entropy(self.classifier(embeddings), labels, reduction="none")


class ArcFace(Objective):
    """Cross-entropy of scaled cosines, the true class with its angle enlarged by a margin.

    Deng et al., "ArcFace: additive angular margin loss for deep face recognition", 2019.
    """

    n_centres = 1

    def __init__(self, spec: ArcFaceSpec, dim: int, n_classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.centres = _centres(n_classes * self.n_centres, dim)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Losses (B,)."""
        cosine = self._cosines(embeddings)
        true = labels[:, None]
        # Away from ±1, where the derivative of the arc cosine is infinite.
        angle = torch.acos(cosine.gather(1, true).clamp(-1 + 1e-6, 1 - 1e-6))
        # Past π the cosine would rise again and reward being wrong.
        with_margin = torch.cos((angle + self.spec.margin).clamp(max=math.pi))
        return F.cross_entropy(self.spec.scale * cosine.scatter(1, true, with_margin), labels, reduction="none")

    def _cosines(self, embeddings: Tensor) -> Tensor:
        """Cosine to the nearest centre of each class: (B, classes)."""
        return self._by_centre(embeddings).amax(dim=2)

    def _by_centre(self, embeddings: Tensor) -> Tensor:
        """Cosine to every centre: (B, classes, centres)."""
        cosine = F.linear(F.normalize(embeddings), F.normalize(self.centres))
        return cosine.view(len(cosine), -1, self.n_centres)


class SubcenterArcFace(ArcFace):
    """ArcFace to the nearest of several centres of a class, so that a class may have several modes.

    Deng et al., "Sub-center ArcFace: boosting face recognition by large-scale noisy web faces", 2020.
    """

    def __init__(
        self, spec: SubcenterArcFaceSpec, dim: int, n_classes: int, unattributed: Tensor | None = None
    ) -> None:
        self.n_centres = spec.centres
        super().__init__(spec, dim, n_classes)
        unused = torch.zeros(n_classes, spec.centres, dtype=torch.bool)
        if spec.of == "unattributed":
            assert unattributed is not None, "the training clips say which classes these are"
            unused[~unattributed, 1:] = True
        self.unused: Tensor
        self.register_buffer("unused", unused, persistent=False)

    def _by_centre(self, embeddings: Tensor) -> Tensor:
        return super()._by_centre(embeddings).masked_fill(self.unused, -1.0)


class SubclusterAdaCos(Objective):
    """Cross-entropy of scaled cosines to several clusters of each class; a class has its clusters' probability.

    The scale follows the training: s = log(B) / cos(min(π/4, θ)), B being the mean over clips of the summed
    exponentials of the other classes' logits and θ the median angle to the true class (Zhang et al., "AdaCos:
    adaptively scaling cosine logits for effectively learning deep face representations", 2019). The clusters are of
    Wilkinghoff, "Sub-cluster AdaCos: learning representations for anomalous sound detection", 2021, the rule for the
    scale is not: it is AdaCos' own with a class's summed clusters for its logit and the nearest cluster for its angle,
    where that paper sums over all clusters, the true class's too. One cluster is AdaCos.
    """

    def __init__(self, spec: SubclusterAdaCosSpec, dim: int, n_classes: int) -> None:
        super().__init__()
        self.clusters = spec.clusters
        n = n_classes * self.clusters
        self.centres = _centres(n, dim)
        self.scale: Tensor
        # Both papers' start; below 1, as for two classes, nothing would be learnt.
        self.register_buffer("scale", torch.tensor(max(1.0, math.sqrt(2) * math.log(max(2, n - 1)))))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """See `Objective.forward`."""
        return F.cross_entropy((self.scale * self._cosines(embeddings)).logsumexp(dim=2), labels, reduction="none")

    @torch.no_grad()
    def adapt(self, embeddings: Tensor, labels: Tensor, others: Tensor) -> None:
        """Update the scale; neither class of a mixture counts among those that it is not."""
        cosine = self._cosines(embeddings)
        both = torch.stack([labels, others], dim=1)
        wrong = (self.scale * cosine).logsumexp(dim=2).scatter(1, both, -math.inf)
        log_b = wrong.flatten().logsumexp(dim=0) - math.log(len(labels))
        nearest = cosine.amax(dim=2).gather(1, labels[:, None]).clamp(-1, 1)
        angle = torch.acos(nearest).median().clamp(max=math.pi / 4)
        self.scale.copy_((log_b / torch.cos(angle)).clamp(1.0, LARGEST_SCALE))

    def _cosines(self, embeddings: Tensor) -> Tensor:
        """Cosine to every cluster: (B, classes, clusters)."""
        cosine = F.linear(F.normalize(embeddings), F.normalize(self.centres))
        return cosine.view(len(cosine), -1, self.clusters)


def _centres(n: int, dim: int) -> nn.Parameter:
    centres = nn.Parameter(torch.empty(n, dim))
    nn.init.xavier_uniform_(centres)
    return centres


OBJECTIVES: dict[type, Any] = {
    SoftmaxSpec: Softmax,
    ArcFaceSpec: ArcFace,
    SubcenterArcFaceSpec: SubcenterArcFace,
    SubclusterAdaCosSpec: SubclusterAdaCos,
}


def build_objective(spec: ObjectiveSpec, dim: int, n_classes: int, unattributed: Tensor | None = None) -> Objective:
    """The objective of a spec for embeddings of `dim` and so many classes.

    unattributed: (n_classes,) bool, the classes of machines without attributes, for those that treat them apart
    """
    more = (unattributed,) if isinstance(spec, SubcenterArcFaceSpec) else ()
    objective: Objective = OBJECTIVES[type(spec)](spec, dim, n_classes, *more)
    return objective
