"""What a study has found, read from its folder: no torch, no Ray, nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from analysis.claims import candidates, find, verdict
from analysis.frame import read_study
from kdtrain.errors import UserError
from kdtrain.storage.folder import user_path

if TYPE_CHECKING:
    from kdtrain.config.recipe import Recipe


@dataclass(frozen=True)
class Winner:
    """The recipe that a study has chosen on validation accuracy, before the test split was read.

    Attributes:
        trial_id: Identity of its training with the first confirming seed, 16 hexadecimal digits.
        values: Value of each searched hyperparameter, by name, such as `{"optimizer.lr": 0.01}`.
        file: The recipe as a file, `best.yaml` in the study's folder.
    """

    trial_id: str
    values: Mapping[str, Any]
    file: Path

    @cached_property
    def recipe(self) -> "Recipe":
        """The whole recipe, with the first confirming seed.

        It is read when it is first used, which imports torch.

        Raises:
            UserError: `best.yaml` is absent or damaged.
        """
        from kdtrain.config.sweep import load_recipe

        return load_recipe(self.file)


@dataclass(frozen=True)
class Comparison:
    """The study's primary claim: winner against student alone on the test split, paired by seed.

    Attributes:
        difference: Mean difference of test accuracy over the seeds, as a fraction: 0.01 is one percentage point.
            Positive if the winner is better.
        interval: 95 % t interval (low, high) of that mean, as fractions; None if there is none, i.e. with one seed or
            with equal differences only.
        seeds: Number of confirming seeds that both have completed.
        verdict: "beat", "lost to", or "undecided: " with the reason.
    """

    difference: float
    interval: tuple[float, float] | None
    seeds: int
    verdict: str


@dataclass(frozen=True)
class StudyResult:
    """A study as its folder holds it, finished or not.

    Attributes:
        name: Name of the sweep.
        folder: The study's folder.
        finished: Whether every planned training has ended and the report is final.
        trials: One row per planned job, with stage, number, trial_id, state ("complete", "pruned", "failed", "broken"
            or "not ended"), reason, seed, the metrics of the best epoch (`val/accuracy`, `val/nll`), those of the test
            split if it was read, and each searched value in a column `recipe.<name>`.
    """

    name: str
    folder: Path
    finished: bool
    trials: pd.DataFrame = field(repr=False, compare=False)
    _winner: Winner | None = field(repr=False)
    _comparison: Comparison | None = field(repr=False)
    _no_result: str | None = field(repr=False)

    @property
    def report(self) -> Path:
        """Path of the report, which is written when a run of the study ends."""
        return self.folder / "report.md"

    @property
    def winner(self) -> Winner:
        """The chosen recipe.

        Raises:
            UserError: The study has chosen none yet.
        """
        if self._winner is None:
            why = self._no_result or "run the sweep again to continue it"
            raise UserError(f"{self.folder}: has no winner{'' if self._no_result else ' yet'}; {why}")
        return self._winner

    @property
    def comparison(self) -> Comparison:
        """The winner's difference to the student alone.

        Raises:
            UserError: No confirming seed has measured both on the test split yet.
        """
        if self._comparison is None:
            raise UserError(
                f"{self.folder}: no confirming seed has measured both winner and student alone on the test split;"
                " run the sweep again to continue it"
            )
        return self._comparison


def open_study(folder: str | Path) -> StudyResult:
    """Return what a study has found so far.

    Nothing is written, and neither torch nor Ray is imported. A study that is still running can be opened, too.

    Args:
        folder: The study's folder, such as `results/digits_kd`.

    Raises:
        UserError: The folder is absent, is not a study's, or holds a damaged file or one of a newer kdtrain.
    """
    study = read_study(user_path(folder, "folder"))
    event = study.winner
    found = find(candidates(study), event["candidate"]) if event else None
    winner = comparison = None
    if event is not None and found is not None:
        winner = Winner(event["trial_id"], dict(found.values), study.folder / "best.yaml")
        if found.difference is not None:
            estimate = found.difference
            interval = None if estimate.interval is None else (estimate.interval.low, estimate.interval.high)
            comparison = Comparison(estimate.mean, interval, estimate.n, str(verdict(estimate)))
    trials = pd.concat([study.trials, study.values.add_prefix("recipe.")], axis="columns")
    return StudyResult(study.name, study.folder, study.finished, trials, winner, comparison, study.no_result)
