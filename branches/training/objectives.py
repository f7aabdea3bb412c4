"""Objectives: embeddings (B, E) and class labels (B,) → the loss of each clip (B,)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branches.spec import ArcFaceSpec, ObjectiveSpec, SoftmaxSpec, SubcenterArcFaceSpec, SubclusterAdaCosSpec

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

    def __init__(self, dim: int, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, n_classes)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Losses (B,)."""
        return F.cross_entropy(self.classifier(embeddings), labels, reduction="none")


class _WithCentres(Objective):
    """Classes with so many centres each."""

    def __init__(self, dim: int, n_classes: int, n_centres: int) -> None:
        super().__init__()
        self.n_centres = n_centres
        self.centres = nn.Parameter(torch.empty(n_classes * n_centres, dim))
        nn.init.xavier_uniform_(self.centres)

    def cosines(self, embeddings: Tensor) -> Tensor:
        """Cosine to every centre: (B, classes, centres)."""
        cosine = F.linear(F.normalize(embeddings), F.normalize(self.centres))
        return cosine.view(len(cosine), -1, self.n_centres)


class ArcFace(_WithCentres):
    """Cross-entropy of scaled cosines to the nearest centre of each class, the true one's angle enlarged by a margin.

    several: (n_classes,) bool, the classes of which more centres than the first count

    Deng et al., "ArcFace: additive angular margin loss for deep face recognition", 2019; several centres, for classes
    of several modes: Deng et al., "Sub-center ArcFace: boosting face recognition by large-scale noisy web faces", 2020.
    """

    def __init__(self, spec: ArcFaceSpec, dim: int, several: Tensor, n_centres: int = 1) -> None:
        super().__init__(dim, len(several), n_centres)
        self.spec = spec
        self.unused: Tensor
        self.register_buffer("unused", ~several[:, None] & (torch.arange(n_centres) > 0), persistent=False)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Losses (B,)."""
        cosine = self.cosines(embeddings).masked_fill(self.unused, -1.0).amax(dim=2)
        true = labels[:, None]
        # Away from ±1, where the derivative of the arc cosine is infinite.
        angle = torch.acos(cosine.gather(1, true).clamp(-1 + 1e-6, 1 - 1e-6))
        # Past π the cosine would rise again and reward being wrong.
        with_margin = torch.cos((angle + self.spec.margin).clamp(max=math.pi))
        return F.cross_entropy(self.spec.scale * cosine.scatter(1, true, with_margin), labels, reduction="none")


class AdaCos(_WithCentres):
    """Cross-entropy of scaled cosines to several clusters of each class; a class has its clusters' probability.

    The scale follows the training: s = log(B) / cos(min(π/4, θ)), B being the mean over clips of the summed
    exponentials of the other classes' logits and θ the median angle to the true class (Zhang et al., "AdaCos:
    adaptively scaling cosine logits for effectively learning deep face representations", 2019). The clusters are of
    Wilkinghoff, "Sub-cluster AdaCos: learning representations for anomalous sound detection", 2021, the rule for the
    scale is not: it is AdaCos' own with a class's summed clusters for its logit and the nearest cluster for its angle,
    where that paper sums over all clusters, the true class's too. One cluster is AdaCos.
    """

    def __init__(self, dim: int, n_classes: int, n_clusters: int) -> None:
        super().__init__(dim, n_classes, n_clusters)
        self.scale: Tensor
        # Both papers' start; below 1, as for two classes, nothing would be learnt.
        start = max(1.0, math.sqrt(2) * math.log(max(2, n_classes * n_clusters - 1)))
        self.register_buffer("scale", torch.tensor(start))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Losses (B,)."""
        return F.cross_entropy((self.scale * self.cosines(embeddings)).logsumexp(dim=2), labels, reduction="none")

    @torch.no_grad()
    def adapt(self, embeddings: Tensor, labels: Tensor, others: Tensor) -> None:
        """Update the scale; neither class of a mixture counts among those that it is not."""
        cosine = self.cosines(embeddings)
        both = torch.stack([labels, others], dim=1)
        wrong = (self.scale * cosine).logsumexp(dim=2).scatter(1, both, -math.inf)
        log_b = wrong.flatten().logsumexp(dim=0) - math.log(len(labels))
        nearest = cosine.amax(dim=2).gather(1, labels[:, None]).clamp(-1, 1)
        angle = torch.acos(nearest).median().clamp(max=math.pi / 4)
        self.scale.copy_((log_b / torch.cos(angle)).clamp(1.0, LARGEST_SCALE))


def build_objective(spec: ObjectiveSpec, dim: int, n_classes: int, unattributed: Tensor | None = None) -> Objective:
    """The objective of a spec for embeddings of `dim` and so many classes.

    unattributed: (n_classes,) bool, the classes of machines without attributes, for those that treat them apart
    """
    match spec:
        case SoftmaxSpec():
            return Softmax(dim, n_classes)
        case SubclusterAdaCosSpec():
            return AdaCos(dim, n_classes, spec.clusters)
        case SubcenterArcFaceSpec(of="unattributed"):
            assert unattributed is not None, "the training clips say which classes these are"
            return ArcFace(spec, dim, unattributed, spec.centres)
        case SubcenterArcFaceSpec():
            return ArcFace(spec, dim, torch.ones(n_classes, dtype=torch.bool), spec.centres)
        case ArcFaceSpec():
            return ArcFace(spec, dim, torch.ones(n_classes, dtype=torch.bool))
