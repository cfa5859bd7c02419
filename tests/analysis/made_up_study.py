"""A study of made-up numbers, written through the real store."""

import io
from pathlib import Path
from typing import Any

import numpy as np

from kdtrain.storage.folder import append_row, write_bytes
from kdtrain.storage.sealed import sealed_object
from kdtrain.trials.store import STUDY_SCHEMA, Store

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


RECIPE = {
    "data": {"name": "digits"}, "teacher": {"model": "lenet5_teacher"}, "student": {"model": "lenet5_student"},
    "method": {"name": "kd", "temperature": {"loguniform": [1, 20]}, "balance": {"alpha_ce": {"uniform": [0, 1]}}},
    "optimizer": {"name": "sgd", "lr": {"loguniform": [0.01, 0.3]}, "momentum": 0.9}, "batch_size": 128, "epochs": 12,
}  # fmt: skip


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
            "objective": "val/accuracy", "trials": 60, "sampler": {"name": "tpe"}, "pruner": {"name": "asha"},
            "published": [], "select": {"candidates": 8, "best_of_each": None},
            "confirm": {"seeds": 5, "published": True}, "seed": 0, "order": "batches", "batch": 4,
        }  # fmt: skip
        self.description = {
            "schema": STUDY_SCHEMA, "name": folder.name, "file": f"sweeps/{folder.name}.yaml",
            "overrides": ["recipe.epochs=3"], "recipe": RECIPE, "study": fields | study, "resources": {"workers": 1},
            "report": {},
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
        write_bytes(self.folder / "study.json", sealed_object(self.description | changes))

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
        folder.keep_epochs(0)  # it may have been trained before
        accuracies = accuracies or []
        nlls = nlls or [nll_of(accuracy) for accuracy in accuracies]
        for epoch, (accuracy, nll) in enumerate(zip(accuracies, nlls, strict=True), start=1):
            losses = {"train/loss": nll * 1.1, "train/cross_entropy": nll, "val/accuracy": accuracy, "val/nll": nll}
            losses["val/mpa"] = accuracy - 0.01
            work = {"images": 1077, "teacher_images": 0, "seconds": seconds}
            folder.append_epoch({"epoch": epoch, "step": 9 * epoch, "lr": 0.1} | losses | work)
        if right_N is not None:
            test = float(right_N.mean())
            labels_N = np.arange(IMAGES) % 10
            logits_NK = np.eye(10, dtype=np.float32)[np.where(right_N, labels_N, (labels_N + 1) % 10)]
            folder.write_predictions(npz(test_logits=logits_NK, test_labels=labels_N))
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

    def race(
        self,
        name: str,
        racers: dict[str, tuple[str, float]],
        *,
        start: int,
        rounds: int = 4,
        options: dict[str, str] | None = None,
        diverged: str | None = None,
        **selected: Any,
    ) -> None:
        """Race candidates over fresh seeds. racers: trial_id and validation accuracy of the search, by candidate.

        After each round from the second on the worst one is dropped, while there are more than two. The posterior is
        crude: means of all seeds, drawn by a third towards the mean of all candidates.
        """

        def score(accuracy: float) -> float:
            return nll_of(accuracy) if self.description["study"]["objective"] == "val/nll" else accuracy

        chance, number, spent = np.random.default_rng(start), start, 0
        reached: dict[str, list[float]] = {key: [] for key in racers}
        dropped: dict[str, int | None] = dict.fromkeys(racers)
        for round_ in range(1, rounds + 1):
            for key in [key for key in racers if dropped[key] is None]:
                fails = key == diverged and round_ == 2
                end = racers[key][1] - 0.03 + float(chance.normal(0, 0.008))
                stage, _, source = key.partition(" ")
                about: dict[str, Any] = {"candidate": key, "role": "candidate", "race": name, "round": round_}
                about["source"] = {"stage": "search" if stage == "published" else stage, "number": int(source)}
                if fails:
                    about |= {"state": "failed", "reason": "epoch 2, step 12: train/loss is nan"}
                    dropped[key] = round_
                self.trial("select", number, [end - 0.1, end], seed=500_000 + round_, **about)
                reached[key] += [] if fails else [end]
                number, spent = number + 1, spent + 1
            means = {key: float(np.mean([racers[key][1], *ends])) for key, ends in reached.items()}
            centre = float(np.mean(list(means.values())))
            means = {key: mean - (mean - centre) / 3 for key, mean in means.items()}
            left = [key for key in racers if dropped[key] is None]
            if round_ > 1 and len(left) > 2:
                dropped[min(left, key=lambda key: means[key])] = round_
            lost = {key for key in racers if key == diverged and dropped[key] is not None}
            rows = [
                {
                    "candidate": key, "option": (options or {}).get(key), "trial_id": racers[key][0],
                    "value": score(racers[key][1]), "seeds": len(ends),
                    "fresh": score(float(np.mean(ends))) if ends else None,
                    "mean": None if key in lost else score(means[key]),
                    "sd": None if key in lost else 0.006 / (1 + len(ends)) ** 0.5,
                    "dropped": dropped[key], "diverged": key in lost,
                }
                for key, ends in reached.items()
            ]  # fmt: skip
            about = {"between_sd": 0.009, "residual_sd": 0.008, "spent": spent, "trainings": 30}
            self.event("round", race=name, round=round_, racers=rows, **about)
        left = [key for key in racers if dropped[key] is None]
        first, *others = sorted(left, key=lambda key: -means[key])
        probabilities = dict.fromkeys(racers, 0.004) | dict.fromkeys(others[:1], 0.2)
        probabilities[first] = 1 - sum(p for key, p in probabilities.items() if key != first)
        leaders = {(options or {}).get(key, "all"): key for key in (*reversed(others), first)}
        about = {
            "leaders": leaders if options else {},
            "rounds": rounds,
            "spent": spent,
            "trainings": 30,
            "reason": None,
            "without": [],
        }
        self.event("selected", **{"race": name, "winner": first, "probabilities": probabilities, **about, **selected})

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


def npz(**arrays: Any) -> bytes:
    """Return the content of an .npz file."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def nll_of(accuracy: float) -> float:
    return 2.3 * (1 - accuracy) + 0.05


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
    earlier: bool = False,
    **study: Any,
) -> MadeUpStudy:
    """Write all stages, with pruned and failed trials. gain: distilled minus alone, spread: over seeds.

    earlier: as versions without a stage select did, which chose the winner from two confirmed recipes.
    """
    chance = np.random.default_rng(7)
    made = MadeUpStudy(results / name, trials=searched, **study)
    if earlier:
        fields = {key: value for key, value in made.description["study"].items() if key != "select"}
        made.description["schema"] = 1
        made.description["study"] = fields | {"confirm": {"best": 2, "seeds": 5, "published": True}}
        made.describe()
    teacher_right = chance.permutation(IMAGES) < round(teacher_test * IMAGES)
    teacher = made.trial("teacher", 0, curve(teacher_test, 12, 0), right_N=teacher_right, model="lenet5_teacher")
    made.plan("smoke", 0, trial_id="confirm0000")  # of the recipe that it tries, as in a study
    made.end("smoke", 0, "confirm0000", "complete")
    alone_values: dict[str, tuple[str, float]] = {}
    for number in range(8):
        lr = float(np.exp(chance.uniform(np.log(0.01), np.log(0.3))))
        end = 0.95 - 0.02 * np.log(lr / 0.08) ** 2 / 2
        made.trial("baselines", number, curve(end, 12, 100 + number), values={"optimizer.lr": lr})
        alone_values[f"baselines {number}"] = f"{made.prefix}baselines{number:04d}", end
    search_values: dict[str, tuple[str, float]] = {}
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
        if not end:
            search_values[f"search {number}" if number else "published 1"] = (
                f"{made.prefix}search{number:04d}", max(accuracies),
            )  # fmt: skip
        made.trial("search", number, accuracies, published=number == 0, **best, **end)
    best["recipe"] = recipe | {"note": 1}
    if not earlier:
        for race, found, start in (("baselines", alone_values, 0), ("search", search_values, 100)):
            promising = sorted(found, key=lambda key: -found[key][1])[:4]
            promising += [key for key in found if key.startswith("published") and key not in promising]
            made.race(race, {key: found[key] for key in promising}, start=start)
    alone = [0.94 + d for d in np.linspace(-spread, spread, seeds)]
    tests = [a + gain + 0.003 * (-1) ** i for i, a in enumerate(alone)]
    published = [a - gain / 2 - 0.003 * (-1) ** i for i, a in enumerate(alone)]
    winner: dict[str, Any] = {"candidate": "best 1" if earlier else "best", "baseline": "baseline 1"}
    if earlier:
        winner["trial_id"] = made.confirm("best 1", tests, start=0, **best)[0]
        second = [a + gain / 2 + 0.004 * (-1) ** i for i, a in enumerate(alone)]
        made.confirm("best 2", second, start=seeds, **best)
    else:
        winner |= {"trial_id": f"{made.prefix}confirm0000", "confirmed": ["best", "published 1", "baseline 1"]}
        made.event("winner", **winner)
        made.confirm("best", tests, start=0, **best)
    made.confirm("published 1", published, start=2 * seeds, role="published", **best)
    made.confirm("baseline 1", alone, start=3 * seeds, role="baseline", values={"optimizer.lr": 0.07})
    if earlier:
        made.event("winner", **winner)
    made.event("finished")
    return made


METHODS = (
    choice("method", "kd", "dkd", "at"),
    number("method[kd].temperature", "loguniform", 1.0, 20.0, method="kd"),
    number("method[dkd].beta", low=1.0, high=8.0, method="dkd"),
    choice("student.model", "small", "large"),
    number("optimizer.lr", "loguniform", 0.01, 0.3),
)


def methods_study(results: Path) -> MadeUpStudy:
    """Write a study of three methods and two student models.

    No trial of `at` is complete, a candidate and a confirming run of `dkd` diverge, confirming seeds grew from 3 to 5.
    """
    chance = np.random.default_rng(3)
    made = MadeUpStudy(results / "methods", parameters=METHODS, trials=30, pruner={"name": "asha"})
    models = {"small": 20_000, "large": 90_000}
    tree = {"choice": [{"name": "kd", "temperature": {"loguniform": [1, 20]}}, {"name": "dkd"}, {"name": "at"}]}
    recipe = RECIPE | {"method": tree, "student": {"model": {"choice": list(models)}}}
    sizes = {name: {"parameters": size, "flops_per_image": 10 * size} for name, size in models.items()}
    made.describe(recipe=recipe, models=sizes, sampler_notes=["GP draws `method[kd].temperature` at random."])
    teacher = made.trial("teacher", 0, curve(0.97, 9, 0), test=0.97, model="lenet5_teacher")
    racers: dict[str, dict[str, tuple[str, float]]] = {"search": {}, "baselines": {}}
    options: dict[str, str] = {}
    values: dict[str, dict[str, Any]] = {}
    for stage in ("baselines", "search"):
        for i in range(30):
            model, method = list(models)[i // 3 % 2], ("kd", "dkd", "at")[i % 3]
            own = {"student.model": model, "optimizer.lr": float(np.exp(chance.uniform(np.log(0.01), np.log(0.3))))}
            end = 0.93 + 0.02 * (model == "large") - 0.01 * np.log(own["optimizer.lr"] / 0.08) ** 2
            tree = {"name": "none"}
            if stage == "search":
                tree = {"name": method}
                own |= {"method": method} | ({"method[kd].temperature": 4.0 + i} if method == "kd" else {})
                own |= {"method[dkd].beta": 1.0 + i / 8} if method == "dkd" else {}
                end += 0.01 + 0.02 * (method == "kd")
            state = "failed" if stage == "search" and method == "at" else "pruned" if i % 4 == 3 else "complete"
            reason = {"failed": "epoch 2, step 9: train/loss is nan", "pruned": "stopped by asha"}.get(state)
            epochs = {"failed": 1, "pruned": 3}.get(state, 9)
            about = {"values": own, "model": model, "recipe": {"method": tree, "note": i}, "reason": reason}
            trial_id = made.trial(
                stage, i, curve(end, epochs, 900 + i), state=state, teacher=None if stage == "baselines" else teacher,
                **about,
            )  # fmt: skip
            values[f"{stage} {i}"] = own
            if state == "complete":
                racers[stage][f"{stage} {i}"] = trial_id, max(curve(end, epochs, 900 + i))
                options[f"{stage} {i}"] = method if stage == "search" else model
    for model in models:
        own_racers = {key: racer for key, racer in racers["baselines"].items() if options[key] == model}
        best = sorted(own_racers, key=lambda key: -own_racers[key][1])[:3]
        start = 100 * (model == "large")
        made.race(f"baselines {model}", {key: own_racers[key] for key in best}, start=start, options=options)
    both = [
        key
        for method in ("kd", "dkd")
        for key in sorted(racers["search"], key=lambda key: -racers["search"][key][1])
        if options[key] == method
    ]
    promising = [
        *[key for key in both if options[key] == "kd"][:3],
        *[key for key in both if options[key] == "dkd"][:3],
    ]
    made.race(
        "search", {key: racers["search"][key] for key in promising}, start=200, options=options,
        diverged=promising[4], without=["at"],
    )  # fmt: skip
    confirmed = ["best kd", "best dkd", "baseline 1", "baseline 2"]
    made.event("winner", candidate="best kd", baseline="baseline 1", trial_id="confirm0000", confirmed=confirmed)
    made.event("seeds_grown", **{"from": 3, "to": 5})
    alone = [0.93, 0.94, 0.935, 0.942, 0.931]
    about = {"values": values[promising[0]], "model": "large", "recipe": {"method": {"name": "kd"}}}
    made.confirm(
        "best kd", [a + g for a, g in zip(alone, (0.02, 0.005, 0.012, 0.02, 0.016), strict=True)], start=0, **about
    )
    about |= {"values": values[promising[3]], "recipe": {"method": {"name": "dkd"}}}
    made.confirm("best dkd", [a + 0.004 * (-1) ** i for i, a in enumerate(alone)], start=5, **about)
    made.confirm("baseline 1", alone, start=10, role="baseline", model="large", values={"optimizer.lr": 0.07})
    small = [a - 0.02 for a in alone]
    made.confirm("baseline 2", small, start=15, role="baseline", model="small", values={"optimizer.lr": 0.07})
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
        "freezes": np.array([freeze, "none", freeze])[:networks], "sizes": np.array([[4, 4]] * networks),
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
