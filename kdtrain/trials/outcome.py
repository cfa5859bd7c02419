"""The outcome of a training from the rows of its epochs."""

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from kdtrain.config.recipe import Recipe
from kdtrain.errors import UserError
from kdtrain.trials.objectives import objectives_of, ranking_key
from kdtrain.trials.records import BestEpoch, EpochRow, Outcome, State
from kdtrain.trials.store import TrialFolder

SKIPPED: Final = "skipped_steps"
"""A step's metric: 1 if the gradient scaler found an overflow and skipped the update, else 0."""


def best_epoch(rows: Sequence[EpochRow], objective: str) -> BestEpoch | None:
    """Return the best row's epoch and metrics, of equal ones the earliest, whose weights `TrainState` keeps."""
    if not rows:
        return None
    best = max(rows, key=lambda row: (*ranking_key(row, objective), -row["epoch"]))
    return cast(BestEpoch, {"epoch": best["epoch"], **objectives_of(best)})


def outcome_row(state: State, reason: str | None, folder: TrialFolder) -> Outcome:
    """Return a training's outcome from its rows, without test metrics.

    There is no recipe.json if the process ended before the training began.
    """
    rows = folder.epochs()
    begun = cast(Mapping[str, Any], folder.recipe() or {})
    objective = begun["recipe"]["objective"] if begun else "val/accuracy"
    images, seconds = sum(row["images"] for row in rows), sum(row["seconds"] for row in rows)
    outcome = {
        "state": state,
        "reason": reason,
        "epochs": len(rows),
        "best": best_epoch(rows, objective),
        "test": None,
        "parameters": begun.get("parameters"),
        "images": images,
        "teacher_images": sum(row["teacher_images"] for row in rows),
        "teacher_images_computed": sum(row.get("teacher_images_computed", 0) for row in rows),
        "teacher_images_checked": sum(row.get("teacher_images_checked", 0) for row in rows),
        "teacher_seconds": sum(row.get("teacher_seconds", 0.0) for row in rows),
        "teacher_forward_seconds": sum(row.get("teacher_forward_seconds", 0.0) for row in rows),
        "views_seconds": sum(row.get("views_seconds", 0.0) for row in rows),
        **({SKIPPED: sum(row[SKIPPED] for row in rows)} if rows and SKIPPED in rows[0] else {}),
        "seconds": seconds,
        "images_per_s": images / seconds if seconds else None,
        "peak_memory_bytes": max((row["peak_memory_bytes"] for row in rows), default=None),
        **begun.get("environment", {}),
    }
    return cast(Outcome, outcome)


def require_own_workers(recipe: Recipe, folder: TrialFolder, workers: int) -> None:
    """Raise UserError if a trial with BatchNorm statistics per worker was begun with another number of workers.

    Statistics of other shares of a batch are another training. Dropout is not: each worker draws masks of its own, but
    from the distribution that one process draws from.
    """
    begun = folder.recipe() if recipe.batch_norm == "per_worker" else None
    if begun is not None and begun["environment"]["workers"] != workers:
        before = begun["environment"]["workers"]
        raise UserError(
            f"recipe.batch_norm: per_worker makes another training of {workers} workers than of {before}, which"
            f" {folder.files} was begun with; set resources.workers to {before}, write global, or name other --results"
        )
