"""A study of made-up numbers, written through the real store."""

from pathlib import Path
from typing import Any

import numpy as np

from kdtrain.storage.folder import append_row, write_bytes
from kdtrain.trials.store import Store, json_bytes

IMAGES = 360
RUN = {
    "threads": 1, "workers": 1, "device": "cpu", "git_commit": "abc1234", "peak_memory_bytes": 300 * 2**20,
    "versions": {"torch": "2.9.0", "python": "3.11.9"},
}  # fmt: skip


def number(name: str, kind: str = "uniform", low: Any = 0.1, high: Any = 10.0, **conditions: str) -> dict[str, Any]:
    return {"name": name, "kind": kind, "low": low, "high": high, "choices": None, "conditions": conditions}


def choice(name: str, *options: Any, **conditions: str) -> dict[str, Any]:
    return number(name, "choice", None, None, **conditions) | {"choices": list(options)}


SPACE = (
    number("method.temperature", "loguniform", 1.0, 20.0),
    number("method.balance.alpha_ce", low=0.0, high=1.0),
    number("optimizer.lr", "loguniform", 0.01, 0.3),
)


class MadeUpStudy:
    """Writes events and trials in the order of the calls; each event takes a second."""

    def __init__(
        self, folder: Path, *, parameters: tuple[dict[str, Any], ...] = SPACE, prefix: str = "", **study: Any
    ) -> None:
        """prefix: of the names of trials, if several studies share a results folder."""
        self.folder, self.prefix = folder, prefix
        self.store = Store(folder.parent)
        self.now = 1_700_000_000.0
        fields = {
            "objective": "val/accuracy", "trials": 24, "sampler": {"name": "tpe"}, "pruner": {"name": "asha"},
            "published": [], "confirm": {"best": 2, "seeds": 5, "published": True}, "seed": 0, "order": "batches",
            "batch": 4,
        }  # fmt: skip
        self.description = {
            "schema": 1, "name": folder.name, "file": f"sweeps/{folder.name}.yaml", "overrides": ["recipe.epochs=3"],
            "recipe": {}, "study": fields | study, "resources": {"workers": 1}, "report": {},
            "parameters": list(parameters),
            "models": {
                "lenet5_teacher": {"parameters": 81194, "flops_per_image": 1_096_000},
                "lenet5_student": {"parameters": 46164, "flops_per_image": 560_000},
            },
        }  # fmt: skip
        self.describe()
        self.event("opened", command=f"kdtrain sweep sweeps/{folder.name}.yaml")

    def describe(self, **changes: Any) -> None:
        """Write study.json."""
        write_bytes(self.folder / "study.json", json_bytes(self.description | changes))

    def event(self, name: str, **fields: Any) -> None:
        self.now += 1.0
        append_row(self.folder / "record.jsonl", {"event": name, "time": self.now, **fields})

    def plan(
        self, stage: str, number: int, *, values: dict[str, Any] | None = None, trial_id: str | None = None, **rest: Any
    ) -> str:
        trial_id = trial_id or f"{self.prefix}{stage}{number:04d}"
        fields = {"stage": stage, "number": number, "trial_id": trial_id, "values": values or {}, "published": False}
        self.event("planned", **fields | rest)
        return trial_id

    def end(self, stage: str, number: int, trial_id: str, state: str, **fields: Any) -> None:
        fields = {"value": None, "reason": None} | fields
        self.event("ended", stage=stage, number=number, trial_id=trial_id, state=state, **fields)

    def change_outcome(self, trial_id: str, **changes: Any) -> None:
        trial = self.store.trial(trial_id)
        trial.write_outcome((trial.outcome() or {}) | changes)

    def trial(
        self,
        stage: str,
        number: int,
        accuracies: list[float] | None = None,
        *,
        seed: int = 0,
        state: str = "complete",
        reason: str | None = None,
        test: float | None = None,
        right_N: np.ndarray | None = None,
        values: dict[str, Any] | None = None,
        recipe: dict[str, Any] | None = None,
        nlls: list[float] | None = None,
        teacher: str | None = None,
        model: str = "lenet5_student",
        seconds: float = 2.0,
        **fields: Any,
    ) -> str:
        """Plan, train and end a trial. accuracies: validation by epoch; right_N: which test images are right."""
        if stage == "confirm":
            fields["seed"] = seed
        trial_id = self.plan(stage, number, values=values, **fields)
        folder = self.store.trial(trial_id)
        tree = {"student": {"model": model}, "method": {"name": "none"}, "seed": seed} | (recipe or {"note": trial_id})
        alpha_ce = tree["method"].get("balance", {}).get("alpha_ce")
        about = {
            "numerics": 1, "weights": None if alpha_ce is None else [alpha_ce, 1 - alpha_ce], "trial_id": trial_id,
            "recipe": tree, "teacher": {"trial_id": teacher} if teacher else None,
            "data": {"name": "digits", "fingerprint": "f", "classes": 10, "train": 1077, "val": 360, "test": IMAGES},
        }  # fmt: skip
        folder.write_recipe(about)
        accuracies = accuracies or []
        nlls = nlls or [2.3 * (1 - accuracy) + 0.05 for accuracy in accuracies]
        for epoch, (accuracy, nll) in enumerate(zip(accuracies, nlls, strict=True), start=1):
            losses = {"train/loss": nll * 1.1, "train/cross_entropy": nll, "val/accuracy": accuracy, "val/nll": nll}
            losses["val/mpa"] = accuracy - 0.01
            work = {"images": 1077, "teacher_images": 0, "seconds": seconds}
            folder.append_epoch({"epoch": epoch, "step": 9 * epoch, "lr": 0.1} | losses | work)
        if right_N is not None:
            test = float(right_N.mean())
            labels_N = np.arange(IMAGES) % 10
            logits_NK = np.eye(10, dtype=np.float32)[np.where(right_N, labels_N, (labels_N + 1) % 10)]
            np.savez(folder.predictions, test_logits=logits_NK, test_labels=labels_N)
        best, value = None, None
        if accuracies and state != "failed":
            at = int(np.argmax(accuracies))
            value = accuracies[at]
            best = {"epoch": at + 1, "val/accuracy": value, "val/mpa": value - 0.01, "val/nll": nlls[at]}
        outcome = {
            "state": state, "reason": reason, "epochs": len(accuracies), "best": best,
            "test": None if test is None else {"test/accuracy": test, "test/nll": 0.1, "images": IMAGES},
            "parameters": 81194 if model == "lenet5_teacher" else 46164,
            "images": 1077 * len(accuracies), "teacher_images": 1077 if teacher else 0,
            "seconds": seconds * len(accuracies), "images_per_s": 1077 / seconds,
        }  # fmt: skip
        folder.write_outcome(outcome | RUN)
        self.end(stage, number, trial_id, state, value=value, reason=reason)
        return trial_id

    def confirm(
        self,
        key: str,
        tests: list[float],
        *,
        start: int,
        role: str = "best",
        baseline: str | None = "baseline 1",
        **fields: Any,
    ) -> list[str]:
        """Confirm a candidate with the seeds 1000, 1001, ...; which test images are right is drawn to fit."""
        chance = np.random.default_rng(start)
        fields |= {"candidate": key, "role": role, "baseline": None if role == "baseline" else baseline}
        fields["source"] = {"stage": "baselines" if role == "baseline" else "search", "number": 0}
        ids = []
        for i, test in enumerate(tests):
            right_N = chance.permutation(IMAGES) < round(test * IMAGES)
            curve_of_run = curve(test - 0.002, 12, start + i)
            ids.append(self.trial("confirm", start + i, curve_of_run, seed=1000 + i, right_N=right_N, **fields))
        return ids


def curve(end: float, epochs: int, seed: int) -> list[float]:
    """Return a validation accuracy that rises to `end` with some noise."""
    noise = np.random.default_rng(seed).normal(0, 0.004, epochs)
    return [float(np.clip(end - 0.75 * np.exp(-0.7 * e) + noise[e - 1], 0.0, 1.0)) for e in range(1, epochs + 1)]


def whole_study(
    results: Path,
    *,
    name: str = "made_up",
    gain: float = 0.02,
    spread: float = 0.008,
    seeds: int = 5,
    searched: int = 30,
    teacher_test: float = 0.985,
    **study: Any,
) -> MadeUpStudy:
    """Write all stages, with pruned and failed trials. gain: distilled minus alone, spread: over seeds."""
    chance = np.random.default_rng(7)
    made = MadeUpStudy(results / name, trials=searched, **study)
    teacher_right = chance.permutation(IMAGES) < round(teacher_test * IMAGES)
    teacher = made.trial("teacher", 0, curve(teacher_test, 12, 0), right_N=teacher_right, model="lenet5_teacher")
    made.plan("smoke", 0, trial_id="confirm0000")  # of the recipe that it tries, as in a study
    made.end("smoke", 0, "confirm0000", "complete")
    for number in range(8):
        lr = float(np.exp(chance.uniform(np.log(0.01), np.log(0.3))))
        end = 0.95 - 0.02 * np.log(lr / 0.08) ** 2 / 2
        made.trial("baselines", number, curve(end, 12, 100 + number), values={"optimizer.lr": lr})
    for number in range(searched):
        temperature, alpha_ce = float(np.exp(chance.uniform(0, np.log(20)))), float(chance.uniform())
        lr = float(np.exp(chance.uniform(np.log(0.01), np.log(0.3))))
        values = {"method.temperature": temperature, "method.balance.alpha_ce": alpha_ce, "optimizer.lr": lr}
        loss = 0.02 * np.log(lr / 0.08) ** 2 / 2 + 0.008 * np.log(temperature / 5) ** 2
        recipe = {"method": {"name": "kd", "temperature": temperature, "balance": {"alpha_ce": alpha_ce}}}
        best: dict[str, Any] = {"values": values, "recipe": recipe, "teacher": teacher}
        epochs, end = 12, {}
        if number % 9 == 5:
            epochs, end = 4, {"state": "pruned", "reason": "below the best third of epoch 4"}
        elif number == 13:
            epochs, end = 2, {"state": "failed", "reason": "epoch 3, step 21: train/loss is nan"}
        accuracies = curve(0.95 + gain - loss, epochs, 200 + number)
        made.trial("search", number, accuracies, published=number == 0, **best, **end)
    best["recipe"] = recipe | {"note": 1}
    alone = [0.94 + d for d in np.linspace(-spread, spread, seeds)]
    first = made.confirm("best 1", [a + gain + 0.003 * (-1) ** i for i, a in enumerate(alone)], start=0, **best)
    made.confirm("best 2", [a + gain / 2 + 0.004 * (-1) ** i for i, a in enumerate(alone)], start=seeds, **best)
    published = [a - gain / 2 - 0.003 * (-1) ** i for i, a in enumerate(alone)]
    made.confirm("published 1", published, start=2 * seeds, role="published", **best)
    made.confirm("baseline 1", alone, start=3 * seeds, role="baseline", values={"optimizer.lr": 0.07})
    made.event("winner", candidate="best 1", baseline="baseline 1", trial_id=first[0])
    made.event("finished")
    return made


ROLES, MODELS = np.array(["distilled", "teacher", "alone"]), np.array(["resnet18", "resnet50", "resnet18"])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).random(shape, dtype=np.float32)


def gradcam_arrays(freeze: str, networks: int = 3) -> dict[str, Any]:
    parts = {
        "images": (noise(4, 32, 32, 3) * 255).astype(np.uint8), "maps": noise(networks, 4, 32, 32),
        "classes": np.array(["ants", "bees", "012.Yellow_headed_Blackbird", "cat"]),
        "roles": ROLES[:networks], "models": MODELS[:networks], "stages": np.array(["16"] * networks),
        "freezes": np.array([freeze, "none", freeze])[:networks], "sizes": np.array([[2, 2]] * networks),
        "named": np.array([["ants"] * 4] * networks), "right": np.array([[True, False, False, False]] * networks),
    }  # fmt: skip
    return {f"gradcam_{freeze}_{name}": array for name, array in parts.items()}


def every_array() -> dict[str, Any]:
    """Return the content of pictures.npz with an array for every picture."""
    maps = {f"attention_maps_{s}_{role}": noise(4, 64 // int(s), 64 // int(s)) for s in ("16", "32") for role in ROLES}
    return {
        "softened_image": np.arange(64, dtype=np.uint8).reshape(8, 8), "softened_temperatures": np.array([1.0, 5.0]),
        "softened_classes": np.array([f"species {k}" for k in range(20)]), "softened_label": np.array(3),
        "softened_teacher": np.full((2, 20), 0.05), "softened_student": np.full((2, 20), 0.05),
        "attention_images": (noise(4, 32, 32, 3) * 255).astype(np.uint8), "attention_classes": np.array(["a"] * 4),
        "attention_roles": ROLES, "attention_models": MODELS, "attention_stages": np.array(["16", "32"]),
        "lr_steps": np.arange(40), "lr_rates": np.linspace(0.1, 0.0, 40), "lr_epochs": np.array(4),
        "lr_steps_per_epoch": np.array(10), "lr_warmup_steps": np.array(0),
        "mixed_images": (noise(25, 16, 16) * 255).astype(np.uint8), "mixed_shares": noise(25),
        "mixed_labels": np.arange(50).reshape(25, 2),
    } | maps | gradcam_arrays("none")  # fmt: skip
