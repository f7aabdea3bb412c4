"""Objectives: embeddings (B, E) and class labels (B,) → a loss to train on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branches.spec import ArcFaceSpec, ObjectiveSpec, SoftmaxSpec


class Softmax(nn.Module):
    """Mean cross-entropy of a linear classifier."""

    def __init__(self, spec: SoftmaxSpec, dim: int, n_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(dim, n_classes)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss."""
        return F.cross_entropy(self.classifier(embeddings), labels)


class ArcFace(nn.Module):
    """Mean cross-entropy of scaled cosines, the true class with its angle enlarged by a margin.

    Deng et al., "ArcFace: additive angular margin loss for deep face recognition", 2019.
    """

    def __init__(self, spec: ArcFaceSpec, dim: int, n_classes: int) -> None:
        super().__init__()
        self.spec = spec
        self.centres = nn.Parameter(torch.empty(n_classes, dim))
        nn.init.xavier_uniform_(self.centres)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Scalar loss."""
        cosine = F.linear(F.normalize(embeddings), F.normalize(self.centres))
        true = labels[:, None]
        # Away from ±1, where the derivative of the arc cosine is infinite.
        angle = torch.acos(cosine.gather(1, true).clamp(-1 + 1e-6, 1 - 1e-6))
        # Past π the cosine would rise again and reward being wrong.
        with_margin = torch.cos((angle + self.spec.margin).clamp(max=math.pi))
        return F.cross_entropy(self.spec.scale * cosine.scatter(1, true, with_margin), labels)


def build_objective(spec: ObjectiveSpec, dim: int, n_classes: int) -> nn.Module:
    """The objective of a spec for embeddings of `dim` and so many classes."""
    if isinstance(spec, ArcFaceSpec):
        return ArcFace(spec, dim, n_classes)
    return Softmax(spec, dim, n_classes)
