"""How epochs and trials compare, and the outcome that the rows of a training's epochs tell."""

from kdtrain.config.recipe import Recipe
from kdtrain.errors import UserError
from kdtrain.storage.folder import Row
from kdtrain.trials.store import TrialFolder

SKIPPED = "skipped_steps"
"""Among the terms of a step: 1 where the gradient scaler found an overflow and left the weights alone, else 0."""


def merit(metrics: Row, objective: str) -> tuple[float, float]:
    """What is compared of two epochs or trials, the larger the better; ties are left to the caller (the earlier)."""
    by_accuracy = (metrics["val/accuracy"], -metrics["val/nll"])
    return by_accuracy if objective == "val/accuracy" else by_accuracy[::-1]


def best_epoch(rows: list[Row], objective: str) -> Row | None:
    """Epoch and validation metrics of the best row: the one whose weights `Run` remembers."""
    if not rows:
        return None
    best = max(rows, key=lambda row: (*merit(row, objective), -row["epoch"]))
    return {key: best[key] for key in ("epoch", "val/accuracy", "val/nll")}


def outcome_row(state: str, reason: str | None, folder: TrialFolder) -> Row:
    """The outcome as the rows of the epochs tell it; `read_test` adds the test metrics of a final one."""
    rows = folder.epochs()
    about = folder.recipe() or {}  # none: its process died before it began
    objective = about["recipe"]["objective"] if about else "val/accuracy"
    images, seconds = sum(row["images"] for row in rows), sum(row["seconds"] for row in rows)
    return {
        "state": state,
        "reason": reason,
        "epochs": len(rows),
        "best": best_epoch(rows, objective),
        "test": None,
        "parameters": about.get("parameters"),
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
        **about.get("environment", {}),
    }


def require_own_workers(recipe: Recipe, folder: TrialFolder, workers: int) -> None:
    """Where each worker has statistics of its own, another number of workers is another training: what it left in the
    folder is not taken for this one's."""
    about = folder.recipe() if recipe.batch_norm == "per_worker" else None
    if about is not None and about["environment"]["workers"] != workers:
        before = about["environment"]["workers"]
        raise UserError(
            f"recipe.batch_norm: per_worker makes another training of {workers} workers than of {before}, which"
            f" {folder.files} was begun with; set resources.workers to {before}, write global, or name other --results"
        )
