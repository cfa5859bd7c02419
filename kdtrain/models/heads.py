"""Heads: pooled features [N, C] -> logits [N, K]."""

from torch import nn

from kdtrain.models.config import Head

HIDDEN_FEATURES = 1000


def make_head(kind: Head, features: int, classes: int, dropout: float) -> nn.Sequential:
    """Return a head with random weights.

    Args:
        kind: linear: dropout and one linear layer. hidden: the head of setup 1 (maximzubkov/cnn-distillation,
            `encoder.fc`).
        features: C of the encoder's output.
        classes: K.
        dropout: probability.
    """
    if kind == "linear":
        return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))
    return nn.Sequential(
        nn.Linear(features, HIDDEN_FEATURES), nn.Dropout(dropout), nn.BatchNorm1d(HIDDEN_FEATURES), nn.ReLU(),
        nn.Linear(HIDDEN_FEATURES, classes),
    )  # fmt: skip
