"""Small sweeps for tests, carried out in this process, and what their journals tell."""

import json
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from trainings import NO_DATA

from kdtrain.config.sweep import load_sweep
from kdtrain.executors.local import run_job
from kdtrain.storage.folder import read_rows
from kdtrain.storage.sealed import DIGEST, sealed_object
from kdtrain.study.description import describe
from kdtrain.study.jobs import Job
from kdtrain.study.journal import StudyJournal
from kdtrain.study.study import Study
from kdtrain.trials.store import Store
from kdtrain.trials.workspace import Workspace

TREE: dict[str, Any] = {
    "recipe": {
        "data": {"name": "digits", "resolution": 16, "limit_per_class": 15},
        "teacher": {"model": "lenet5_teacher", "epochs": 2, "optimizer": {"name": "adam", "lr": 0.01}},
        "student": {"model": "lenet5_student"},
        "method": {"name": "kd", "balance": {"alpha_ce": {"uniform": [0, 1]}}, "temperature": 4.0},
        "optimizer": {"name": "adam", "lr": {"loguniform": [0.0001, 0.03]}},
        "lr_schedule": {"name": "constant"},
        "batch_size": 16,
        "epochs": 4,
    },
    "study": {
        "trials": 6,
        "sampler": {"name": "tpe", "startup_trials": 3},
        "pruner": {"name": "asha", "min_epochs": 2, "reduction": 2},
        "published": [{"method": {"balance": {"alpha": 0.5}}, "optimizer": {"lr": 0.01}}],
        "select": {"candidates": 2},
        "confirm": {"seeds": 2},
        "batch": 2,
    },
}


def sweep_file(folder: Path, *, name: str = "small", recipe: Any = None, study: Any = None, **parts: Any) -> Path:
    """A sweep file: TREE with some keys replaced (None removes one)."""
    tree = {"recipe": {**TREE["recipe"], **(recipe or {})}, "study": {**TREE["study"], **(study or {})}, **parts}
    cleaned = {part: {k: v for k, v in keys.items() if v is not None} for part, keys in tree.items()}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(cleaned, sort_keys=False))
    return path


def open_study(file: Path, results: Path, **options: Any) -> Study:
    sweep = load_sweep(file, **options)
    study = Study(sweep, Workspace(Store(results), NO_DATA), StudyJournal(results / sweep.name))
    study.journal.open(describe(sweep, NO_DATA), file.read_text())
    return study


def rewrite(path: Path, **changes: Any) -> None:
    """Change keys of a stored object, as kdtrain itself would have written it."""
    value = {**json.loads(path.read_text()), **changes}
    path.write_bytes(sealed_object({key: each for key, each in value.items() if key != DIGEST}))


def with_trials_of(finished: Study, results: Path, file: Path) -> Study:
    """Open another study in a folder that has the trials of the finished one."""
    shutil.copytree(finished.workspace.store.results / "trials", results / "trials")
    return open_study(file, results)


def carry_out(study: Study, *, jobs: int | None = None, cut_at_epoch: int | None = None) -> list[Job]:
    """Run the study's jobs but for the pictures, one after another, and return the jobs.

    A kill after `jobs` of them is imitated, the last of them in mid-training after `cut_at_epoch`.
    """
    ran: list[Job] = []
    prune = study.should_prune

    def kill(job: Job, epoch: int) -> bool:
        if len(ran) == jobs and cut_at_epoch is not None and epoch >= cut_at_epoch:
            raise KeyboardInterrupt  # before the study decides, as a kill may come
        return prune(job, epoch)

    study.should_prune = kill  # type: ignore[method-assign]
    for job in study.jobs():
        assert job is not None, "a study waits although nothing runs"
        ran.append(job)
        with suppress(KeyboardInterrupt):
            study.ended(job, run_job(study, job) if job.kind != "pictures" else None)
        if len(ran) == jobs:
            break
    study.should_prune = prune  # type: ignore[method-assign]
    return ran


def plans(study: Study, stage: str) -> list[dict[str, Any]]:
    """The planned events of a stage, by number."""
    rows = [row for row in events(study) if row["event"] == "planned" and row["stage"] == stage]
    return [row for _, row in sorted({row["number"]: row for row in rows}.items())]


def events(study: Study) -> list[dict[str, Any]]:
    return read_rows(study.journal.path)


def decisions(study: Study) -> list[tuple[Any, ...]]:
    """What a study decided, without times: values, states, objectives, winner."""
    ends = {(row["stage"], row["number"]): row for row in events(study) if row["event"] == "ended"}
    planned = {(row["stage"], row["number"]): row for row in events(study) if row["event"] == "planned"}
    found: list[tuple[Any, ...]] = [
        (*key, planned[key]["values"], planned[key].get("candidate"), row["state"], row["value"], row["epochs"])
        for key, row in sorted(ends.items())
    ]
    found += [(row["candidate"], row["trial_id"]) for row in events(study) if row["event"] == "winner"]
    return found
