"""The arrays of a folder of results: predictions.npz of a trial, pictures.npz of a study. Needs numpy, and no torch."""

from pathlib import Path

import numpy as np

from kdtrain.errors import DamagedFile
from kdtrain.trials.store import TrialFolder, require_unchanged


def read_arrays(path: Path, expected: str | None = None) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file, none if there is no file.

    Args:
        path: The file.
        expected: Its SHA-256 when it was written, or None if that is not known.

    Raises:
        DamagedFile: The file has changed or cannot be read.
    """
    if not path.exists():
        return {}
    require_unchanged(path, path, expected)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except Exception as error:  # zipfile and numpy raise a dozen types
        raise DamagedFile.at(path, f"cannot be read as arrays ({type(error).__name__}: {error})") from None


def read_predictions(trial: TrialFolder) -> dict[str, np.ndarray]:
    """Return logits [N, K] and labels [N] of the splits "val" and "test" by name, or nothing if none are kept."""
    path = trial.predictions
    arrays = read_arrays(path)
    if not arrays and path.exists():
        raise DamagedFile.at(path, "has no arrays")
    return arrays
