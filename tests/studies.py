"""Small sweeps for tests, and a way to carry one out in this process, job by job: execute.py does it with Ray."""

from pathlib import Path
from typing import Any

import torch
import yaml

from kdtrain.config.sweep import load_sweep
from kdtrain.runtime.process import prepare_process
from kdtrain.study.description import describe
from kdtrain.study.journal import StudyJournal
from kdtrain.study.study import Job, Study
from kdtrain.training.epoch_metrics import Metrics
from kdtrain.training.final_evaluation import read_test
from kdtrain.training.preflight import smoke
from kdtrain.training.trainer import train
from kdtrain.trials.store import Store
from kdtrain.trials.workspace import Workspace

CPU = torch.device("cpu")
prepare_process(1)
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
        "confirm": {"best": 2, "seeds": 2},
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
    study = Study(sweep, Store(results), StudyJournal(results / sweep.name), Path("/nowhere"))
    study.journal.open(describe(sweep, Path("/nowhere")), file.read_text())
    return study


class Stopped(BaseException):
    """What ends a training from its report: pruning, as Tune's STOP does it."""


def carry_out(study: Study, *, jobs: int | None = None, cut_at_epoch: int | None = None) -> list[Job]:
    """Runs the study's jobs one after another; returns what it ran. Leaves off after `jobs` of them, as a kill would,
    the last of them in mid-training after `cut_at_epoch`."""
    ran: list[Job] = []
    for job in study.jobs():
        assert job is not None, "a study waits although nothing runs"
        ran.append(job)
        cut = cut_at_epoch if len(ran) == jobs else None
        if not run(study, job, cut):
            break
        study.ended(job)
        if len(ran) == jobs:
            break
    return ran


def run(study: Study, job: Job, cut: int | None = None) -> bool:
    """One job; False if it was cut off after epoch `cut`."""

    def on_epoch(metrics: Metrics) -> None:
        if cut is not None and metrics["epoch"] >= cut:
            raise Stopped("cut")  # before the study is asked, as a kill may come
        if study.should_prune(job, int(metrics["epoch"])):
            raise Stopped("pruned")

    place = Workspace(study.store, study.data_root)
    try:
        if job.kind == "train":
            train(job.recipe, place, final=job.final, on_epoch=on_epoch)
        elif job.kind == "smoke":
            smoke(job.recipe, place)
        elif job.kind == "test":
            for recipe in job.also:
                read_test(recipe, place)
    except Stopped as stopped:
        return str(stopped) == "pruned"
    return True


def plans(study: Study, stage: str) -> list[dict[str, Any]]:
    """The planned events of a stage, by number."""
    rows = [row for row in events(study) if row["event"] == "planned" and row["stage"] == stage]
    return [row for _, row in sorted({row["number"]: row for row in rows}.items())]


def events(study: Study) -> list[dict[str, Any]]:
    from kdtrain.storage.folder import read_rows

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
