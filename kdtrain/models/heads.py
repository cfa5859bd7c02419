"""Heads: pooled features [N, C] -> logits [N, K]."""

from torch import nn

from kdtrain.models.config import Head

HIDDEN = 1000


def make_head(kind: Head, features: int, classes: int, dropout: float) -> nn.Sequential:
    """linear: dropout and one linear layer. hidden: setup 1's (maximzubkov/cnn-distillation, `encoder.fc`)."""
    if kind == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
    return nn.Sequential(
        nn.Linear(features, HIDDEN), nn.Dropout(dropout), nn.BatchNorm1d(HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes)
    )
