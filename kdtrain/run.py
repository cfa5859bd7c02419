"""Run: a training in progress. train(): one recipe from its folder in the store to its outcome."""

import json
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdtrain import environment, ranks
from kdtrain.config.recipe import Recipe, teacher_recipe
from kdtrain.data import Dataset, load
from kdtrain.distiller import Distiller
from kdtrain.errors import UserError
from kdtrain.evaluate import accuracy, logits_of, nll
from kdtrain.identity import NUMERICS, file_digest, trial_id
from kdtrain.learner import Learner
from kdtrain.loop import Metrics, NonFiniteLoss, fit, train_step
from kdtrain.models import build, parameter_count
from kdtrain.store import Row, Store, TrialFolder, locked, write_bytes
from kdtrain.streams import stream
from kdtrain.teacher import Teacher, load_weights


class Run:
    """The one object that changes. `checkpoint` is all of it that is not derived from the recipe."""

    def __init__(self, recipe: Recipe, data: Dataset, teacher: Teacher | None, device: torch.device) -> None:
        self.recipe, self.data, self.teacher, self.device = recipe, data, teacher, device
        student = build(recipe.student.model, data.image_shape, len(data.classes), stream(recipe.seed, "init"))
        self.distiller = Distiller(student, recipe.method.criterion(recipe.label_smoothing)).to(device)
        self.wrapped: torch.nn.Module = self.distiller
        if ranks.size() > 1:
            self.wrapped = torch.nn.parallel.DistributedDataParallel(self.distiller)
        steps_per_epoch = -(-len(data.train) // recipe.batch_size)
        self.learner = Learner(self.distiller, recipe, steps_per_epoch)
        self.epoch = 0
        self.step = 0
        self.best: Metrics | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.teacher_val_logits: Tensor | None = None

    def remember_best(self, metrics: Metrics) -> None:
        """Keeps epoch and weights if the objective is better than ever; ties by the other metric, then the earlier."""
        own = {"epoch": self.epoch, **{key: metrics[key] for key in ("val/accuracy", "val/nll")}}
        objective = self.recipe.objective
        if self.best is None or merit(own, objective) > merit(self.best, objective):
            self.best = own
            self.best_weights = {
                name: value.detach().clone() for name, value in self.distiller.student.state_dict().items()
            }

    def checkpoint(self) -> bytes:
        """Everything that resuming needs, as one safetensors file."""
        tensors = self.learner.state_tensors() | {f"best.{name}": value for name, value in self.best_weights.items()}
        progress = {"epoch": self.epoch, "step": self.step, "best": self.best}
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        return safetensors.torch.save(contiguous, {"progress": json.dumps(progress)})

    def restore(self, checkpoint: bytes) -> None:
        """Continues from `checkpoint()`, bit for bit."""
        tensors = safetensors.torch.load(checkpoint)
        header_bytes = int.from_bytes(checkpoint[:8], "little")
        progress = json.loads(json.loads(checkpoint[8 : 8 + header_bytes])["__metadata__"]["progress"])
        self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
        prefix = "best."
        best = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        self.best_weights = {name: value.to(self.device) for name, value in best.items()}
        self.learner.load_state_tensors({name: t for name, t in tensors.items() if not name.startswith(prefix)})


def train(
    recipe: Recipe,
    store: Store,
    data_root: Path,
    device: torch.device,
    *,
    final: bool = False,
    on_epoch: Callable[[Metrics], None] = lambda metrics: None,
) -> Row:
    """Trains a recipe to its outcome, which is returned; continues what was cut off, returns what has ended.

    final: keep the best epoch's weights, from which `read_test` reads the test split; a training never reads it.
    on_epoch is called on every rank after the row and checkpoint of an epoch are written.
    A training that breaks ends as `failed` with its reason; what a user can mend (UserError, OSError) is raised.
    """
    data = load(recipe.data, data_root)
    folder = store.trial(trial_id(recipe, data_root))
    # a process that outlived its killed driver, or another sweep with the same teacher, may be at work here
    with locked(folder.path, wait=True) if ranks.rank() == 0 else nullcontext():
        ranks.barrier()
        ended = folder.outcome()
        if ended is not None and _serves(ended, final, folder):
            return ended
        run = Run(recipe, data, trained_teacher(recipe, data, store, data_root, device), device)
        _open(run, folder, data_root)
        return _train(run, folder, final, on_epoch)


def _open(run: Run, folder: TrialFolder, data_root: Path) -> None:
    """The trial's folder made ready, and the run where its newest whole checkpoint left off."""
    saved = folder.read_checkpoint()
    if saved is not None:
        run.restore(saved)
    ranks.barrier()  # all have read what rank 0 now writes
    if ranks.rank() == 0:
        folder.remove_outcome()
        folder.write_recipe(_recipe_row(run, folder, data_root))
        folder.keep_epochs(run.epoch)


def _train(run: Run, folder: TrialFolder, final: bool, on_epoch: Callable[[Metrics], None]) -> Row:
    leads = ranks.rank() == 0

    def report(metrics: Metrics, run: Run) -> None:
        metrics["peak_memory_bytes"] = environment.peak_memory_bytes(run.device)
        if leads:
            folder.append_epoch(metrics)
            folder.write_checkpoint(run.epoch, run.checkpoint())
        ranks.barrier()  # all ranks sum up the rows in the end
        on_epoch(metrics)

    state, reason = "complete", None
    try:
        fit(run, run.recipe.epochs, report)
    except (UserError, OSError):  # a full disk or a closed pipe is no outcome of the recipe: it can be continued
        raise
    except Exception as error:
        if ranks.size() > 1 and not isinstance(error, NonFiniteLoss):
            raise  # of this rank alone: the others wait for it, so the group must end
        if leads:
            write_bytes(folder.path / "error.txt", traceback.format_exc().encode())
        state = "failed"
        reason = str(error) if isinstance(error, NonFiniteLoss) else f"{type(error).__name__}: {error}"
    outcome = outcome_row(state, reason, folder)
    if leads:
        if final and state == "complete":
            weights = {name: value.cpu().contiguous() for name, value in run.best_weights.items()}
            write_bytes(folder.weights, safetensors.torch.save(weights))
        if folder.outcome() is None:  # else the study has pruned it meanwhile
            folder.write_outcome(outcome)
        folder.remove_checkpoints()
    ranks.barrier()
    return outcome


def _serves(outcome: Row, final: bool, folder: TrialFolder) -> bool:
    """Whether an outcome is what a training would end with. A pruned one is some study's choice, no end."""
    if outcome["state"] == "complete":
        return not final or folder.weights.exists()
    return bool(outcome["state"] == "failed")


def trained_teacher(
    recipe: Recipe, data: Dataset, store: Store, data_root: Path, device: torch.device
) -> Teacher | None:
    """The recipe's teacher with its trained weights, from its file or from the store."""
    if recipe.teacher is None:
        return None
    network = fresh_teacher(recipe, data)
    taught_by = teacher_recipe(recipe)
    if taught_by is None:
        assert recipe.teacher.file is not None
        load_weights(network, Path(recipe.teacher.file))
    else:
        load_weights(network, store.trial(trial_id(taught_by, data_root)).weights)
    return Teacher(network, device)


def fresh_teacher(recipe: Recipe, data: Dataset) -> torch.nn.Module:
    """The recipe's teacher network before its weights are read."""
    assert recipe.teacher is not None
    return build(recipe.teacher.model, data.image_shape, len(data.classes), stream(recipe.teacher.seed, "init"))


def smoke(recipe: Recipe, data_root: Path, device: torch.device) -> None:
    """One real batch through student, teacher and method, nothing written; raises what a training would raise.

    The teacher's weights are read where they come from a file and fresh where it is yet to be trained.
    """
    data = load(recipe.data, data_root)
    teacher = None
    if recipe.teacher is not None:
        network = fresh_teacher(recipe, data)
        if recipe.teacher.file is not None:
            load_weights(network, Path(recipe.teacher.file))
        teacher = Teacher(network, device)
    run = Run(recipe, data, teacher, device)
    run.distiller.train()
    terms = train_step(run, torch.arange(min(recipe.batch_size, len(data.train))))
    broken = [name for name, value in terms.items() if not torch.isfinite(value)]
    if broken:
        raise NonFiniteLoss(f"not finite on the first batch: {', '.join(broken)}")


def read_test(recipe: Recipe, store: Store, data_root: Path, device: torch.device) -> Row:
    """Reads the test split of a training that kept its weights, once: its logits and those of validation are written,
    its metrics join the outcome, which is returned."""
    data = load(recipe.data, data_root)
    folder = store.trial(trial_id(recipe, data_root))
    with locked(folder.path, wait=True) if ranks.rank() == 0 else nullcontext():
        ranks.barrier()
        outcome = folder.outcome()
        assert outcome is not None
        assert outcome["state"] == "complete"
        if outcome["test"] is not None:
            return outcome
        network = build(recipe.student.model, data.image_shape, len(data.classes), 0).to(device)
        load_weights(network, folder.weights)
        val_logits, test_logits = (logits_of(network, split, device) for split in (data.val, data.test))
        outcome["test"] = {
            "test/accuracy": accuracy(test_logits, data.test.labels),
            "test/nll": nll(test_logits, data.test.labels),
            "images": len(data.test),
        }
        ranks.barrier()  # all have read the outcome that rank 0 now writes
        if ranks.rank() == 0:
            arrays = {"val_logits": val_logits, "val_labels": data.val.labels}
            arrays |= {"test_logits": test_logits, "test_labels": data.test.labels}
            write_arrays(folder.predictions, {name: value.numpy() for name, value in arrays.items()})
            folder.write_outcome(outcome)
        return outcome


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz file, whole or not at all."""
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    temporary.replace(path)


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
        "seconds": seconds,
        "images_per_s": images / seconds if seconds else None,
        "peak_memory_bytes": max((row["peak_memory_bytes"] for row in rows), default=None),
        **about.get("environment", {}),
    }


def _recipe_row(run: Run, folder: TrialFolder, data_root: Path) -> Row:
    recipe = run.recipe
    taught_by = teacher_recipe(recipe)
    teacher: Row | None = None
    if taught_by is not None:
        teacher = {"trial_id": trial_id(taught_by, data_root)}
    elif recipe.teacher is not None:
        teacher = {"file": recipe.teacher.file, "sha256": file_digest(recipe.teacher)}
    return {
        "numerics": NUMERICS,
        "trial_id": folder.trial_id,
        "recipe": recipe.model_dump(mode="json", exclude_none=True),
        "teacher": teacher,
        "weights": list(recipe.method.balance.weights) if hasattr(recipe.method, "balance") else None,
        "data": run.data.summary(),
        "parameters": parameter_count(run.distiller.student),
        "environment": environment.describe(run.device, ranks.size()),
    }
