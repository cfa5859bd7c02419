"""Run: a training in progress. train(): one recipe from its folder in the store to its outcome."""

import json
import traceback
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdtrain import environment, ranks
from kdtrain.averaging import Average
from kdtrain.config.recipe import BatchNorm, Recipe, teacher_recipe
from kdtrain.config.training import Adam, Constant
from kdtrain.data import Dataset, load
from kdtrain.distiller import Distiller
from kdtrain.errors import UserError
from kdtrain.evaluate import logits_of, pair_metrics, student_metrics, tta_logits
from kdtrain.feed import Feed
from kdtrain.identity import NUMERICS, file_digest, trial_id
from kdtrain.learner import Learner
from kdtrain.loop import Metrics, fit, train_step
from kdtrain.methods import Setting
from kdtrain.methods.adversary import Adversary
from kdtrain.models import Classifier, build, has_randomness, parameter_count
from kdtrain.models.batch_norm import over_global_batch, trains_batch_norm
from kdtrain.models.weights import at
from kdtrain.progress import EpochProgress, NonFiniteLoss
from kdtrain.store import Row, Store, TrialFolder, locked, write_bytes
from kdtrain.streams import stream
from kdtrain.teacher import Teacher, load_weights


class Run:
    """The one object that changes. `checkpoint` is all of it that is not derived from the recipe."""

    def __init__(
        self,
        recipe: Recipe,
        data: Dataset,
        teacher: Teacher | None,
        device: torch.device,
        *,
        pretrained: bool = True,
        loaders: int = 0,
    ) -> None:
        """pretrained=False: fresh weights whatever the recipe says, where only time or memory is asked for.
        loaders: processes that make views; see Feed."""
        self.recipe, self.data, self.teacher, self.device = recipe, data, teacher, device
        environment.use_precision(recipe.precision, device)
        seed = stream(recipe.seed, "init")
        student = build(recipe.student, data.image_shape, len(data.classes), seed, pretrained=pretrained)
        setting = setting_for(recipe, data, student, teacher)
        _require_statistics(recipe, data, student, device, "recipe.batch_size")
        self.distiller = _distiller(recipe, student, setting).to(device)
        self.wrapped = _in_group(self.distiller, device, recipe.batch_norm)
        steps_per_epoch = -(-len(data.train) // recipe.batch_size)
        self.learner = Learner(
            self.distiller, recipe.optimizer, recipe.lr_schedule, recipe.clipping, recipe.epochs, steps_per_epoch,
            torch.amp.GradScaler(device.type) if recipe.precision == "fp16" else None,
        )  # fmt: skip
        self.average = Average(student, recipe.ema) if recipe.ema else None
        self.adversary: Adversary | None = recipe.method.critic(setting)
        self.critic_learner: Learner | None = None
        if self.adversary is not None:
            critic_loss = self.adversary.loss.to(device)
            self.wrapped_critic = _in_group(critic_loss, device, recipe.batch_norm)
            adam, constant = Adam(name="adam", lr=self.adversary.lr), Constant(name="constant")
            self.critic_learner = Learner(critic_loss, adam, constant, None, recipe.epochs, steps_per_epoch)
        self.feed = Feed(recipe, data.train, device, loaders)
        self.epoch = 0
        self.step = 0
        self.progress = EpochProgress(0)
        self.best: Metrics | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.teacher_val_logits: Tensor | None = None

    @property
    def evaluated(self) -> torch.nn.Module:
        """The network that is judged and kept: the student, or its moving average."""
        return self.average.module if self.average is not None else self.distiller.student

    def remember_best(self, metrics: Metrics) -> None:
        """Keeps epoch and weights if the objective is better than ever; ties by the other metric, then the earlier."""
        own = {"epoch": self.epoch, **{key: metrics[key] for key in ("val/accuracy", "val/nll")}}
        objective = self.recipe.objective
        if self.best is None or merit(own, objective) > merit(self.best, objective):
            self.best = own
            self.best_weights = {name: value.detach().clone() for name, value in self.evaluated.state_dict().items()}

    def checkpoint(self) -> bytes:
        """Everything that resuming needs, as one safetensors file."""
        tensors = {
            f"{part}.{name}": value for part, owner in self._parts() for name, value in owner.state_tensors().items()
        }
        tensors |= {f"best.{name}": value for name, value in self.best_weights.items()}
        tensors |= {f"terms.{name}": value for name, value in self.progress.state_tensors().items()}
        within = {name: getattr(self.progress, name) for name in WITHIN_EPOCH}
        progress = {"epoch": self.epoch, "step": self.step, "best": self.best, "within_epoch": within}
        contiguous = {name: value.contiguous() for name, value in tensors.items()}
        return safetensors.torch.save(contiguous, {"progress": json.dumps(progress)})

    def restore(self, checkpoint: bytes) -> None:
        """Continues from `checkpoint()`, bit for bit."""
        tensors = safetensors.torch.load(checkpoint)
        header_bytes = int.from_bytes(checkpoint[:8], "little")
        progress = json.loads(json.loads(checkpoint[8 : 8 + header_bytes])["__metadata__"]["progress"])
        self.epoch, self.step, self.best = progress["epoch"], progress["step"], progress["best"]
        terms = {name: values.tolist() for name, values in _below("terms.", tensors).items()}
        self.progress = EpochProgress(self.epoch, terms=terms, **progress["within_epoch"])
        self.best_weights = {name: value.to(self.device) for name, value in _below("best.", tensors).items()}
        for part, owner in self._parts():
            owner.load_state_tensors(_below(f"{part}.", tensors))

    def _parts(self) -> list[tuple[str, Learner | Average]]:
        """What holds state, by the name under which a checkpoint has it."""
        parts: dict[str, Learner | Average | None] = {
            "learner": self.learner, "critic": self.critic_learner, "average": self.average
        }  # fmt: skip
        return [(name, part) for name, part in parts.items() if part is not None]


WITHIN_EPOCH = ("steps", "seconds", "teacher_images", "images")


def setting_for(recipe: Recipe, data: Dataset, student: Classifier, teacher: Teacher | None) -> Setting:
    """What the recipe's method is built for: the shapes of its stages are measured in both networks."""
    stages = recipe.method.needed_stages
    with at("recipe.method"):
        student_shapes = student.stage_shapes(stages)
        teacher_shapes = teacher.network.stage_shapes(stages) if teacher else {}
    return Setting(
        classes=len(data.classes),
        batch_size=recipe.batch_size,
        label_smoothing=recipe.label_smoothing,
        seed=recipe.seed,
        student_shapes=student_shapes,
        teacher_shapes=teacher_shapes,
    )


def _distiller(recipe: Recipe, student: Classifier, setting: Setting) -> Distiller:
    with torch.random.fork_rng(devices=[]):  # a projector's or generator's first weights
        torch.manual_seed(stream(recipe.seed, "criterion"))
        criterion = recipe.method.criterion(setting)
    r_drop = recipe.r_drop
    if r_drop is None:
        return Distiller(student, criterion, recipe.method.needed_stages)
    if not has_randomness(student):
        model = recipe.student.model
        raise UserError(f"recipe.r_drop: compares two passes with dropout, and {model} has none; write student.dropout")
    published = r_drop.convention == "published"
    return Distiller(student, criterion, recipe.method.needed_stages, r_drop.weight, summed=published)


def _require_statistics(recipe: Recipe, data: Dataset, student: Classifier, device: torch.device, place: str) -> None:
    """No batch, and no worker's share where it has statistics of its own, may be one image where that has none.
    `place` is where the batch size is written."""
    total, workers = len(data.train), ranks.size()
    last = (total - 1) % recipe.batch_size + 1
    alone = recipe.batch_norm == "per_worker"
    shared = f", shared by {workers} workers" if workers > 1 else ""
    left = f"{place}: {recipe.batch_size} leaves {last} of {total} images for the last batch{shared}"
    norm = student.norm_over_images() if last < (2 * workers if alone else 2) else None
    if norm is not None:
        raise UserError(
            f"{left}, and of one image the batch normalisation {norm} of {student.name} has no statistics; choose "
            "another"
        )
    if not alone and last < workers and device.type != "cpu" and trains_batch_norm(student.train()):
        raise UserError(f"{left}, and on a GPU batch normalisation needs an image on each; choose another")


def require_own_workers(recipe: Recipe, folder: TrialFolder, workers: int) -> None:
    """Where each worker has statistics of its own, another number of workers is another training: what it left in the
    folder is not taken for this one's."""
    about = folder.recipe() if recipe.batch_norm == "per_worker" else None
    if about is not None and about["environment"]["workers"] != workers:
        before = about["environment"]["workers"]
        raise UserError(
            f"recipe.batch_norm: per_worker makes another training of {workers} workers than of {before}, which"
            f" {folder.path} was begun with; set resources.workers to {before}, write global, or name other --results"
        )


def _in_group(module: torch.nn.Module, device: torch.device, batch_norm: BatchNorm) -> torch.nn.Module:
    """The module itself, or with several workers the one whose gradients are averaged over them."""
    if ranks.size() == 1:
        return module
    if batch_norm == "global":
        over_global_batch(module, device)
    # before every forward all take the buffers of rank 0: statistics per worker differ, global ones are equal anyway
    return torch.nn.parallel.DistributedDataParallel(module)


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def train(
    recipe: Recipe,
    store: Store,
    data_root: Path,
    device: torch.device,
    *,
    final: bool = False,
    on_epoch: Callable[[Metrics], None] = lambda metrics: None,
    checkpoint_every_steps: int | None = None,
    loaders: int = 0,
) -> Row:
    """Trains a recipe to its outcome, which is returned; continues what was cut off, returns what has ended.

    final: keep the best epoch's weights, from which `read_test` reads the test split; a training never reads it.
    on_epoch is called on every rank after the row and checkpoint of an epoch are written.
    checkpoint_every_steps: checkpoints in mid-epoch too; where a training is cut changes nothing of what it gives.
    loaders: processes beside this one that make the training's views; their number changes nothing either.
    A training that breaks ends as `failed` with its reason; what a user can mend (UserError, OSError) is raised.
    """
    data = load(recipe.data, data_root)
    folder = store.trial(trial_id(recipe, data_root))
    # a process that outlived its killed driver, or another sweep with the same teacher, may be at work here
    with locked(folder.path, wait=True) if ranks.rank() == 0 else nullcontext():
        ranks.barrier()
        require_own_workers(recipe, folder, ranks.size())
        ended = folder.outcome()
        if ended is not None and _serves(ended, final, folder):
            return ended
        check_images(data)
        run = Run(recipe, data, trained_teacher(recipe, data, store, data_root, device), device, loaders=loaders)
        _require_students_turn(run)
        _open(run, folder, data_root)
        with closing(run.feed):
            return _train(run, folder, final, on_epoch, checkpoint_every_steps)


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


def _train(
    run: Run,
    folder: TrialFolder,
    final: bool,
    on_epoch: Callable[[Metrics], None],
    checkpoint_every_steps: int | None,
) -> Row:
    leads = ranks.rank() == 0

    def checkpoint(run: Run) -> None:
        if leads:
            folder.write_checkpoint(run.step, run.checkpoint())

    def report(metrics: Metrics, run: Run) -> None:
        metrics["peak_memory_bytes"] = environment.peak_memory_bytes(run.device)
        if leads:
            folder.append_epoch(metrics)
            checkpoint(run)
        ranks.barrier()  # all ranks sum up the rows in the end
        on_epoch(metrics)

    state, reason = "complete", None
    try:
        fit(run, run.recipe.epochs, report, checkpoint=checkpoint, every_steps=checkpoint_every_steps)
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
        load_weights(network, Path(recipe.teacher.file), "recipe.teacher.file")
    else:
        load_weights(network, store.trial(trial_id(taught_by, data_root)).weights)
    return Teacher(network, device, recipe.method.needed_stages)


def fresh_teacher(recipe: Recipe, data: Dataset, *, pretrained: bool = False) -> Classifier:
    """The recipe's teacher network before its trained weights are read; pretrained: as its training begins."""
    assert recipe.teacher is not None
    seed, shape, classes = stream(recipe.teacher.seed, "init"), data.image_shape, len(data.classes)
    return build(recipe.teacher, shape, classes, seed, pretrained=pretrained, place="recipe.teacher")


def check_images(data: Dataset) -> None:
    """Every image file of all three splits can be read; raises UserError naming the first that cannot."""
    for split in (data.train, data.val, data.test):
        split.images.check()


def _require_students_turn(run: Run) -> None:
    """The critic begins: a student that never had its turn would be judged as it was drawn."""
    turns = run.recipe.method.turns
    if turns is None:
        return
    steps = -(-len(run.data.train) // run.recipe.batch_size)
    span = "epoch" if turns.restart_each_epoch else "training"
    steps *= 1 if turns.restart_each_epoch else run.recipe.epochs
    if steps <= turns.critic_steps:
        raise UserError(
            f"recipe.method.critic_steps: must be below the {steps} steps of the {span}, or the student never has its"
            f" turn; got {turns.critic_steps}"
        )


def check_before_teacher(recipe: Recipe, store: Store, data_root: Path, device: torch.device) -> None:
    """Where a teacher is yet to be trained, which may take days: raises now what the student's training would raise
    afterwards, and what the teacher's own would, in the words of this recipe. Nothing is written."""
    taught_by = teacher_recipe(recipe)
    if taught_by is None or store.trial(trial_id(taught_by, data_root, "recipe.teacher")).weights.exists():
        return
    data = load(recipe.data, data_root)
    check_images(data)
    network = fresh_teacher(recipe, data, pretrained=True)
    _require_statistics(taught_by, data, network, device, "recipe.teacher.batch_size")
    _require_students_turn(Run(recipe, data, Teacher(network, device, recipe.method.needed_stages), device))


def smoke(recipe: Recipe, data_root: Path, device: torch.device) -> None:
    """One real batch through student, teacher and method, in each player's turn, nothing written; raises what a
    training would raise.

    The teacher's weights are read where they come from a file and fresh where it is yet to be trained.
    """
    data = load(recipe.data, data_root)
    check_images(data)
    teacher = None
    if recipe.teacher is not None:
        network = fresh_teacher(recipe, data)
        if recipe.teacher.file is not None:
            load_weights(network, Path(recipe.teacher.file), "recipe.teacher.file")
        teacher = Teacher(network, device, recipe.method.needed_stages)
    run = Run(recipe, data, teacher, device)
    _require_students_turn(run)
    run.distiller.train()
    terms: dict[str, Tensor] = {}
    for step in (0,) if run.adversary is None else (0, run.adversary.turns.critic_steps):  # each player's first turn
        run.step = step
        terms |= train_step(run, torch.arange(min(recipe.batch_size, len(data.train))), step)
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
        network = build(recipe.student, data.image_shape, len(data.classes), 0, pretrained=False).to(device)
        load_weights(network, folder.weights, "recipe.student")
        logits = {
            "val_logits": logits_of(network, data.val, device),
            "test_logits": logits_of(network, data.test, device),
        }
        augmented = tta_logits(network, data.test, device)
        metrics = student_metrics(logits["test_logits"], data.test.labels)
        test: Row = {f"test/{name}": value for name, value in metrics.items()} | {"images": len(data.test)}
        if augmented is not None:
            logits["test_tta_logits"] = augmented
            metrics = student_metrics(augmented, data.test.labels)
            test |= {f"test_tta/{name}": value for name, value in metrics.items()}
        teacher = _teacher_test_logits(recipe, data, store, data_root, device)
        if teacher is not None:
            pair = pair_metrics(logits["test_logits"], teacher, recipe.seed, 0, recipe.batch_size)
            test |= {f"test/{name}": value for name, value in pair.items()}
            test["test/teacher_accuracy"] = student_metrics(teacher, data.test.labels)["accuracy"]
        outcome["test"] = test
        ranks.barrier()  # all have read the outcome that rank 0 now writes
        if ranks.rank() == 0:
            arrays = logits | {"val_labels": data.val.labels, "test_labels": data.test.labels}
            write_arrays(folder.predictions, {name: value.numpy() for name, value in arrays.items()})
            folder.write_outcome(outcome)
        return outcome


def _teacher_test_logits(
    recipe: Recipe, data: Dataset, store: Store, data_root: Path, device: torch.device
) -> Tensor | None:
    """[N, K] of the recipe's teacher: as it has left them when its own test split was read, else computed."""
    taught_by = teacher_recipe(recipe)
    if taught_by is not None:
        predictions = store.trial(trial_id(taught_by, data_root, "recipe.teacher")).predictions
        if predictions.exists():
            with np.load(predictions) as kept:
                return torch.from_numpy(kept["test_logits"])
    teacher = trained_teacher(recipe, data, store, data_root, device)
    return logits_of(teacher.network, data.test, device) if teacher is not None else None


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
    elif recipe.teacher is not None and recipe.teacher.file is not None:
        teacher = {"file": recipe.teacher.file, "sha256": file_digest(recipe.teacher.file)}
    return {
        "numerics": NUMERICS,
        "trial_id": folder.trial_id,
        "recipe": recipe.model_dump(mode="json"),
        "teacher": teacher,
        "weights": list(recipe.method.balance.weights) if hasattr(recipe.method, "balance") else None,
        "data": run.data.summary(),
        "parameters": parameter_count(run.distiller.student),
        "environment": environment.describe(run.device, ranks.size()),
    }
