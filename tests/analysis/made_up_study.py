"""A study of made-up numbers, written through the real store: data, not mocks."""

from pathlib import Path
from typing import Any

import numpy as np

from kdtrain.storage.folder import append_row
from kdtrain.trials.store import Store, write_json

TEMPERATURE = {
    "name": "method.temperature",
    "kind": "loguniform",
    "low": 1.0,
    "high": 20.0,
    "choices": None,
    "conditions": {},
}
ALPHA = {
    "name": "method.balance.alpha_ce",
    "kind": "uniform",
    "low": 0.0,
    "high": 1.0,
    "choices": None,
    "conditions": {},
}
LR = {
    "name": "optimizer.lr",
    "kind": "loguniform",
    "low": 0.01,
    "high": 0.3,
    "choices": None,
    "conditions": {},
}
IMAGES = 360


class MadeUpStudy:
    """Writes events and trials in the order they are asked for; a second passes with each event."""

    def __init__(
        self,
        folder: Path,
        *,
        parameters: tuple[dict[str, Any], ...] = (TEMPERATURE, ALPHA, LR),
        prefix: str = "",
        **study: Any,
    ) -> None:
        """prefix: of its trials' names, where several studies share a results folder."""
        self.folder, self.prefix = folder, prefix
        self.store = Store(folder.parent)
        self.now = 1_700_000_000.0
        fields = {
            "objective": "val/accuracy",
            "trials": 24,
            "sampler": {"name": "tpe"},
            "pruner": {"name": "asha"},
            "published": [],
            "confirm": {"best": 2, "seeds": 5, "published": True},
            "seed": 0,
            "order": "batches",
            "batch": 4,
        } | study
        self.description = {
            "schema": 1,
            "name": folder.name,
            "file": f"sweeps/{folder.name}.yaml",
            "overrides": ["recipe.epochs=3"],
            "recipe": {},
            "study": fields,
            "resources": {"workers": 1},
            "report": {},
            "parameters": list(parameters),
            "models": {
                "lenet5_teacher": {"parameters": 81194, "flops_per_image": 1_096_000},
                "lenet5_student": {"parameters": 46164, "flops_per_image": 560_000},
            },
        }
        write_json(folder / "study.json", self.description)
        self.event("opened", command="python run_sweep.py sweeps/made_up.yaml")

    def event(self, name: str, **fields: Any) -> None:
        self.now += 1.0
        append_row(self.folder / "record.jsonl", {"event": name, "time": self.now, **fields})

    def plan(
        self,
        stage: str,
        number: int,
        *,
        values: dict[str, Any] | None = None,
        trial_id: str | None = None,
        **fields: Any,
    ) -> str:
        trial_id = trial_id or f"{self.prefix}{stage}{number:04d}"
        self.event(
            "planned",
            stage=stage,
            number=number,
            trial_id=trial_id,
            values=values or {},
            **({"published": False} | fields),
        )
        return trial_id

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
        """Planned, trained, ended. accuracies: validation by epoch; right_N: which test images are right."""
        if stage == "confirm":
            fields["seed"] = seed
        trial_id = self.plan(stage, number, values=values, **fields)
        folder = self.store.trial(trial_id)
        tree = {"student": {"model": model}, "method": {"name": "none"}, "seed": seed} | (recipe or {"note": trial_id})
        alpha_ce = tree["method"].get("balance", {}).get("alpha_ce")
        folder.write_recipe(
            {
                "numerics": 1,
                "weights": None if alpha_ce is None else [alpha_ce, 1 - alpha_ce],
                "trial_id": trial_id,
                "recipe": tree,
                "teacher": {"trial_id": teacher} if teacher else None,
                "data": {
                    "name": "digits",
                    "fingerprint": "f",
                    "classes": 10,
                    "train": 1077,
                    "val": 360,
                    "test": IMAGES,
                },
            }
        )
        accuracies = accuracies or []
        nlls = nlls or [2.3 * (1 - accuracy) + 0.05 for accuracy in accuracies]
        for epoch, (accuracy, nll) in enumerate(zip(accuracies, nlls, strict=True), start=1):
            folder.append_epoch(
                {
                    "epoch": epoch,
                    "step": 9 * epoch,
                    "lr": 0.1,
                    "train/loss": nll * 1.1,
                    "train/cross_entropy": nll,
                    "val/accuracy": accuracy,
                    "val/nll": nll,
                    "images": 1077,
                    "teacher_images": 0,
                    "seconds": seconds,
                }
            )
        if right_N is not None:
            test = float(right_N.mean())
            labels_N = np.arange(IMAGES) % 10
            logits_NK = np.eye(10, dtype=np.float32)[np.where(right_N, labels_N, (labels_N + 1) % 10)]
            folder.path.mkdir(exist_ok=True, parents=True)
            np.savez(
                folder.predictions,
                test_logits=logits_NK,
                test_labels=labels_N,
                val_logits=logits_NK,
                val_labels=labels_N,
            )
        best = int(np.argmax(accuracies)) if accuracies else None
        folder.write_outcome(
            {
                "state": state,
                "reason": reason,
                "epochs": len(accuracies),
                "best": None
                if best is None or state == "failed"
                else {"epoch": best + 1, "val/accuracy": accuracies[best], "val/nll": nlls[best]},
                "test": None if test is None else {"test/accuracy": test, "test/nll": 0.1, "images": IMAGES},
                "parameters": 81194 if model == "lenet5_teacher" else 46164,
                "images": 1077 * len(accuracies),
                "teacher_images": 1077 if teacher else 0,
                "seconds": seconds * len(accuracies),
                "images_per_s": 1077 / seconds,
                "peak_memory_bytes": 300 * 2**20,
                "device": "cpu",
                "threads": 1,
                "workers": 1,
                "git_commit": "abc1234",
                "versions": {"torch": "2.9.0", "python": "3.11.9"},
            }
        )
        value = None if best is None or state == "failed" else accuracies[best]
        self.event("ended", stage=stage, number=number, trial_id=trial_id, state=state, value=value, reason=reason)
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
        """A candidate over the seeds 1000, 1001, ...; which test images are right is drawn to fit."""
        chance = np.random.default_rng(start)
        ids = []
        for i, test in enumerate(tests):
            right_N = chance.permutation(IMAGES) < round(test * IMAGES)
            ids.append(
                self.trial(
                    "confirm",
                    start + i,
                    curve(test - 0.002, 12, start + i),
                    seed=1000 + i,
                    right_N=right_N,
                    candidate=key,
                    role=role,
                    baseline=None if role == "baseline" else baseline,
                    source={"stage": "baselines" if role == "baseline" else "search", "number": 0},
                    **fields,
                )
            )
        return ids


def curve(end: float, epochs: int, seed: int) -> list[float]:
    """A validation accuracy that rises to `end` with some noise."""
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
    """All stages, with pruned and failed trials. gain: distilled minus alone, spread: over seeds."""
    chance = np.random.default_rng(7)
    made = MadeUpStudy(results / name, trials=searched, **study)
    teacher_right = chance.permutation(IMAGES) < round(teacher_test * IMAGES)
    teacher = made.trial("teacher", 0, curve(teacher_test, 12, 0), right_N=teacher_right, model="lenet5_teacher")
    made.plan("smoke", 0, trial_id="confirm0000")  # of the recipe it tries, as the study does
    made.event("ended", stage="smoke", number=0, trial_id="confirm0000", state="complete", value=None, reason=None)
    for number in range(8):
        lr = float(np.exp(chance.uniform(np.log(0.01), np.log(0.3))))
        end = 0.95 - 0.02 * np.log(lr / 0.08) ** 2 / 2
        made.trial("baselines", number, curve(end, 12, 100 + number), values={"optimizer.lr": lr})
    for number in range(searched):
        values = {
            "method.temperature": float(np.exp(chance.uniform(0, np.log(20)))),
            "method.balance.alpha_ce": float(chance.uniform()),
            "optimizer.lr": float(np.exp(chance.uniform(np.log(0.01), np.log(0.3)))),
        }
        end = (
            0.95
            + gain
            - 0.02 * np.log(values["optimizer.lr"] / 0.08) ** 2 / 2
            - 0.008 * np.log(values["method.temperature"] / 5) ** 2
        )
        recipe = {
            "method": {
                "name": "kd",
                "temperature": values["method.temperature"],
                "balance": {"alpha_ce": values["method.balance.alpha_ce"]},
            }
        }
        common: dict[str, Any] = {
            "values": values,
            "recipe": recipe,
            "teacher": teacher,
            "published": number == 0,
        }
        if number % 9 == 5:
            made.trial(
                "search",
                number,
                curve(end, 4, 200 + number),
                state="pruned",
                reason="below the best third of epoch 4",
                **common,
            )
        elif number == 13:
            made.trial(
                "search",
                number,
                curve(end, 2, 200),
                state="failed",
                reason="the loss is not finite at step 21",
                **common,
            )
        else:
            made.trial("search", number, curve(end, 12, 200 + number), **common)
    best = {"values": values, "recipe": recipe | {"note": 1}, "teacher": teacher}
    alone = [0.94 + d for d in np.linspace(-spread, spread, seeds)]
    first = made.confirm("best 1", [a + gain + 0.003 * (-1) ** i for i, a in enumerate(alone)], start=0, **best)
    made.confirm("best 2", [a + gain / 2 + 0.004 * (-1) ** i for i, a in enumerate(alone)], start=seeds, **best)
    made.confirm(
        "published 1",
        [a - gain / 2 - 0.003 * (-1) ** i for i, a in enumerate(alone)],
        start=2 * seeds,
        role="published",
        **best,
    )
    made.confirm("baseline 1", alone, start=3 * seeds, role="baseline", values={"optimizer.lr": 0.07})
    made.event("winner", candidate="best 1", baseline="baseline 1", trial_id=first[0])
    made.event("finished")
    return made
