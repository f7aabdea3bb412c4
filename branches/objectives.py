"""Objectives: embeddings (B, E) and class labels (B,) → the loss of each clip (B,)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branches.spec import (
    AdaCosSpec,
    ArcFaceSpec,
    ObjectiveSpec,
    SoftmaxSpec,
    SubcenterArcFaceSpec,
    SubclusterAdaCosSpec,
)


class Softmax(nn.Module):
    """Cross-entropy of a linear classifier."""

    def __init__(self, spec: SoftmaxSpec, dim: int, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, n_classes)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Losses (B,)."""
        return F.cross_entropy(self.classifier(embeddings), labels, reduction="none")


class ArcFace(nn.Module):
    """Cross-entropy of scaled cosines, the true class with its angle enlarged by a margin.

    Deng et al., "ArcFace: additive angular margin loss for deep face recognition", 2019.
    """

    centers = 1

    def __init__(self, spec: ArcFaceSpec, dim: int, n_classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.centres = _centres(n_classes * self.centers, dim)

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
        cosine = F.linear(F.normalize(embeddings), F.normalize(self.centres))
        return cosine.view(len(cosine), -1, self.centers).amax(dim=2)


class SubcenterArcFace(ArcFace):
    """ArcFace to the nearest of several centres of a class, so that a class may have several modes.

    Deng et al., "Sub-center ArcFace: boosting face recognition by large-scale noisy web faces", 2020.
    """

    def __init__(self, spec: SubcenterArcFaceSpec, dim: int, n_classes: int) -> None:
        self.centers = spec.centers
        super().__init__(spec, dim, n_classes)


class SubclusterAdaCos(nn.Module):
    """Cross-entropy of scaled cosines to several clusters of each class; a class has its clusters' probability.

    The scale follows the training: s = log(B) / cos(min(π/4, θ)), B being the mean over clips of the summed
    exponentials of the other classes' logits and θ the median angle to the true class. Zhang et al., "AdaCos:
    adaptively scaling cosine logits for effectively learning deep face representations", 2019; Wilkinghoff,
    "Sub-cluster AdaCos: learning representations for anomalous sound detection", 2021. One cluster is AdaCos.
    """

    def __init__(self, spec: AdaCosSpec | SubclusterAdaCosSpec, dim: int, n_classes: int) -> None:
        super().__init__()
        self.clusters = spec.clusters if isinstance(spec, SubclusterAdaCosSpec) else 1
        n = n_classes * self.clusters
        self.centres = _centres(n, dim)
        self.scale: Tensor
        # Both papers' start; below 1, as for two classes, nothing would be learnt.
        self.register_buffer("scale", torch.tensor(max(1.0, math.sqrt(2) * math.log(max(2, n - 1)))))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Losses (B,); in training mode the scale is brought up to date first."""
        cosine = F.linear(F.normalize(embeddings), F.normalize(self.centres))
        cosine = cosine.view(len(cosine), -1, self.clusters)
        if self.training:
            self._adapt(cosine.detach(), labels)
        # A copy, since a second call before the backward pass, as in mixup, changes the scale in place.
        return F.cross_entropy((self.scale.clone() * cosine).logsumexp(dim=2), labels, reduction="none")

    def _adapt(self, cosine: Tensor, labels: Tensor) -> None:
        """Update the scale from cosines (B, classes, clusters)."""
        true = F.one_hot(labels, cosine.shape[1]).bool()
        others = (self.scale * cosine).logsumexp(dim=2).masked_fill(true, -math.inf)
        log_b = others.flatten().logsumexp(dim=0) - math.log(len(labels))
        angle = torch.acos(cosine[true].amax(dim=1).clamp(-1, 1)).median()
        self.scale.copy_((log_b / torch.cos(angle.clamp(max=math.pi / 4))).clamp(min=1.0))


def _centres(n: int, dim: int) -> nn.Parameter:
    centres = nn.Parameter(torch.empty(n, dim))
    nn.init.xavier_uniform_(centres)
    return centres


OBJECTIVES: dict[type, Any] = {
    SoftmaxSpec: Softmax,
    ArcFaceSpec: ArcFace,
    SubcenterArcFaceSpec: SubcenterArcFace,
    AdaCosSpec: SubclusterAdaCos,
    SubclusterAdaCosSpec: SubclusterAdaCos,
}


def build_objective(spec: ObjectiveSpec, dim: int, n_classes: int) -> nn.Module:
    """The objective of a spec for embeddings of `dim` and so many classes."""
    objective: nn.Module = OBJECTIVES[type(spec)](spec, dim, n_classes)
    return objective
