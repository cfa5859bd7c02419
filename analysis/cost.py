"""Times, computation and versions of a study: the only part of a report that differs when the study is repeated."""

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from analysis.accounts import commands
from analysis.frame import Study
from analysis.tables import MISSING
from kdtrain.storage.folder import Row


def cost(study: Study) -> Row:
    """Return sums over every training that a study rests on; None is unknown.

    bare_s is the training time without teacher and data loading, i.e. what training on ready batches and targets would
    take, and overhead the training time over bare_s. placed is the newest event that says how many trials ran at once.
    caches_off has the reasons by the name of the cache, one for each training that had to do without.
    """
    outcomes = list(study.outcomes.values())
    in_half = [outcome for outcome in outcomes if "skipped_steps" in outcome]
    bare_s, overhead = _bare_seconds(outcomes)
    return {
        "trainings": sum(bool(outcome.get("epochs")) for outcome in outcomes),
        **{name: _total(outcomes, name) for name in ("epochs", "images", "teacher_images")},
        "teacher_outputs": _teacher_outputs(outcomes),
        "caches_off": {
            name: [str(o[f"{name}_cache_off"]) for o in outcomes if o.get(f"{name}_cache_off")]
            for name in ("teacher", "image")
        },
        "skipped_steps": _total(in_half, "skipped_steps") if in_half else None,
        "wall_s": wall_seconds(study),
        "training_s": _total(outcomes, "seconds"),
        "bare_s": bare_s,
        "overhead": overhead,
        "peak_memory_bytes": max(
            (o["peak_memory_bytes"] for o in outcomes if o.get("peak_memory_bytes")), default=None
        ),
        **{name: _distinct(o.get(name) for o in outcomes) for name in ("device", "threads", "workers")},
        "placed": next((event for event in reversed(study.record) if event["event"] == "placed"), None),
        "git_commit": _distinct(_commit(outcome) for outcome in outcomes),
        "versions": _distinct(
            ", ".join(f"{name} {version}" for name, version in sorted((outcome.get("versions") or {}).items()))
            for outcome in outcomes
        ),
        "commands": commands(study),
    }


def wall_seconds(study: Study) -> float:
    """Return the seconds during which the driver was open: from each `opened` to the last event before the next."""
    times = [float(event["time"]) for event in study.record]
    starts = [i for i, event in enumerate(study.record) if event["event"] == "opened"]
    return sum(times[end - 1] - times[start] for start, end in pairwise([*starts, len(times)]))


def _commit(outcome: Row) -> str | None:
    """Return the commit, and a digest of what differed from it; records of before have no digest."""
    changes = outcome.get("git_dirty")
    return f"{outcome['git_commit']} with changes {changes}" if changes else outcome.get("git_commit")


def _distinct(values: Iterable[Any]) -> str:
    return "; ".join(sorted({str(value) for value in values if value not in (None, "")})) or MISSING


def _teacher_outputs(outcomes: list[Row]) -> Row | None:
    """Count images whose teacher outputs were computed, read from the cache, and computed again to check the cache."""
    known = [outcome for outcome in outcomes if outcome.get("teacher_images_computed") is not None]
    if not known or not _total(outcomes, "teacher_images"):
        return None
    computed, checked = _total(known, "teacher_images_computed"), _total(known, "teacher_images_checked")
    seconds = _total(known, "teacher_forward_seconds")
    timed = seconds > 0 and all(_on_cpu(outcome) for outcome in known)
    return {
        "computed": computed,
        "read": max(_total(known, "teacher_images") - computed, 0.0),
        "checked": checked,
        "seconds_per_image": seconds / (computed + checked) if timed else None,
    }


def _bare_seconds(outcomes: list[Row]) -> tuple[float | None, float | None]:
    """Return bare_s and overhead of the trainings on a CPU: a GPU still computes when the time is taken."""
    known = [outcome for outcome in outcomes if outcome.get("views_seconds") is not None and _on_cpu(outcome)]
    seconds = _total(known, "seconds")
    bare_s = seconds - _total(known, "teacher_seconds") - _total(known, "views_seconds")
    return (bare_s, seconds / bare_s) if known and bare_s > 0 else (None, None)


def _on_cpu(outcome: Row) -> bool:
    return str(outcome.get("device", "")).startswith("cpu")


def _total(outcomes: list[Row], name: str) -> float:
    return sum(outcome.get(name) or 0 for outcome in outcomes)
