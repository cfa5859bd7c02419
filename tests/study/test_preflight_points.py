"""What preflight checks try, and what a study keeps of the memory that they have measured."""

from pathlib import Path
from typing import Any

from studies import events, open_study, sweep_file

from kdtrain.config.sweep import Sweep
from kdtrain.executors.local import run_job
from kdtrain.study.plan import plan
from kdtrain.study.smoke import most_memory, preflight_points
from kdtrain.study.study import Study
from kdtrain.trials.records import MemoryRecord

RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "resolution": {"choice": [16, 32]}},
    "student": {"model": {"choice": ["lenet5_student", "lenet5_teacher"]}},
    "teacher": {
        "model": "lenet5_teacher", "optimizer": {"name": "adam", "lr": 0.1}, "batch_size": 64, "precision": "fp32",
        "epochs": 1,
    },
    "method": {"name": "kd", "temperature": 4.0, "balance": {"alpha": 0.5}},
    "optimizer": {"choice": [{"name": "sgd", "lr": 0.1, "momentum": 0.9}, {"name": "adam", "lr": 0.1}]},
    "lr_schedule": {"name": "constant"},
    "batch_size": {"choice": [64, 256, 128]},
    "precision": {"choice": ["fp32", "bf16"]},
    "ema": {"choice": [None, {"decay": 0.9}]},
    "epochs": {"int": [1, 9]},
}  # fmt: skip


def test_every_option_that_changes_memory_is_tried_with_the_largest_batch() -> None:
    sweep = Sweep.from_dict({"recipe": RECIPE, "study": {"trials": 1}}, "mine")
    recipes = [sweep.recipe_for(values, 0) for values in preflight_points(sweep)]
    assert len(recipes) == len(set(recipes)) == 2 * 2 * 2 * 2 * 2
    assert {(each.batch_size, each.epochs) for each in recipes} == {(256, 1)}


def first_job(study: Study) -> str:
    job = next(study.jobs())
    assert job is not None
    return job.key


def test_measured_memory_survives_a_restart_and_is_measured_again_on_another_kind_of_device(tmp_path: Path) -> None:
    file, results = sweep_file(tmp_path), tmp_path / "results"
    study = open_study(file, results)
    jobs = study.jobs()
    job = next(jobs)
    assert job is not None
    assert (job.kind, study.memory) == ("smoke", None)
    study.ended(job, run_job(study, job))
    assert next(jobs).key == "teacher-0"  # type: ignore[union-attr]
    assert study.memory is not None
    for on_gpu in (None, False):
        again = open_study(file, results)
        again.on_gpu = on_gpu
        assert first_job(again) == "teacher-0"
        assert again.memory == study.memory
    elsewhere = open_study(file, results)
    elsewhere.on_gpu = True
    assert first_job(elsewhere) == "smoke-0"


def test_the_most_of_all_measurements_counts_on_the_smallest_gpu() -> None:
    def of(device: str, process: int, gpu: int, total: int) -> MemoryRecord:
        return {"device": device, "process_bytes": process, "gpu_bytes": gpu, "gpu_total_bytes": total}

    both = most_memory([of("T4", 3, 5, 16), of("L4", 4, 2, 24)])
    assert both == of("L4, T4", 4, 5, 16)
    assert most_memory([of("T4", 3, 5, 16), None]) is None
    assert most_memory([]) is None


def test_where_trials_run_is_noted_when_it_changes(tmp_path: Path) -> None:
    study = open_study(sweep_file(tmp_path), tmp_path / "results")
    for trials in (1, 1, 3):
        study.place(f"NVIDIA L4, {trials} trials per GPU", "NVIDIA L4", trials, 2 * trials)
    noted = [row for row in events(study) if row["event"] == "placed"]
    assert [(row["device"], row["trials_per_gpu"], row["trials_at_once"]) for row in noted] == [
        ("NVIDIA L4", 1, 2),
        ("NVIDIA L4", 3, 6),
    ]


def test_the_plan_names_the_device_and_needs_no_ray_for_it() -> None:
    tree = RECIPE | {"data": {"name": "digits", "resolution": 16}, "student": {"model": "lenet5_student"}}
    sweep = Sweep.from_dict({"recipe": tree, "study": {"trials": 1}}, "mine")
    gpu_node = {"CPU": 8.0, "GPU": 1.0, "accelerator_type:L4": 1.0}
    assert "device: L4, trials per GPU: auto, decided after the preflight checks" in plan(
        sweep, None, ([gpu_node], [gpu_node])
    )
    assert "device: cpu\n" in plan(sweep, None, ([{"CPU": 2.0}], [{"CPU": 2.0}]))
