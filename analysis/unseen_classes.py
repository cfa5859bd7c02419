"""Classes of which a student has never seen a labelled image: how many it recognises, and the bias that it lacks.

Hinton, Vinyals, Dean 2015 (arXiv:1503.02531), section 3: a student that never saw a 3 recognises most of them, and
nearly all if the bias of class 3 is raised. N images, K classes.
"""

from collections.abc import Sequence

import numpy as np


def recognised(logits_NK: np.ndarray, labels_N: np.ndarray, classes: Sequence[int]) -> float:
    """Return the share of the images of these classes whose class is predicted; NaN if there are none."""
    of_classes_N = np.isin(labels_N, classes)
    right_N = logits_NK.argmax(axis=1) == labels_N
    return float(right_N[of_classes_N].mean()) if of_classes_N.any() else float("nan")


def with_bias(logits_NK: np.ndarray, classes: Sequence[int], bias: float) -> np.ndarray:
    """Return logits [N, K] with a number added to those of these classes."""
    raised_NK: np.ndarray = logits_NK + bias * np.isin(np.arange(logits_NK.shape[1]), classes)
    return raised_NK


def best_bias(logits_NK: np.ndarray, labels_N: np.ndarray, classes: Sequence[int]) -> float:
    """Return the number that gives the highest accuracy if it is added to the logits of these classes.

    The accuracy changes only at the gaps between the largest logit of the other classes and the largest of these. So
    there are N + 1 intervals to compare; of the best one the middle is returned, or 0 if that is in it. Of equal ones
    the one nearest to 0 is taken.
    """
    own_K = np.isin(np.arange(logits_NK.shape[1]), classes)
    inside_N = np.where(own_K, logits_NK, -np.inf).argmax(axis=1)
    outside_N = np.where(own_K, -np.inf, logits_NK).argmax(axis=1)
    rows_N = np.arange(len(logits_NK))
    gap_N = logits_NK[rows_N, outside_N].astype(float) - logits_NK[rows_N, inside_N]
    order_N = gap_N.argsort()
    won_N = (inside_N == labels_N).astype(int) - (outside_N == labels_N)  # if the bias is above the image's gap
    gains = np.concatenate([[0], np.cumsum(won_N[order_N])])  # in the intervals, from the lowest
    lows, highs = np.append(gap_N[order_N][0] - 2, gap_N[order_N]), np.append(gap_N[order_N], gap_N[order_N][-1] + 2)
    biases = np.where((lows < 0) & (highs > 0), 0.0, (lows + highs) / 2)
    best = np.lexsort((np.abs(biases), -np.where(highs > lows, gains, -np.inf)))[0]
    return float(biases[best])
