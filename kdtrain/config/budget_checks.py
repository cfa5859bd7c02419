"""Checks of `study.budget` against the search space, and the upper bounds that they share with the study."""

import math
from collections.abc import Iterator
from typing import Any

from kdtrain.config.problems import Problem
from kdtrain.config.search_checks import compared_choice, longest_training
from kdtrain.config.space import combinations, parameters
from kdtrain.config.study_settings import StudySettings

SEEDS_KEPT = 3
"""Confirming seeds, if so many are written, for which select gives up its share if need be."""
TENTHS = {"search": 6, "select": 8, "confirm": 10}
"""Tenths of the budget that are spent at most when a stage ends. Baselines and search have one share together."""


def share_end(stage: str, total: float, kept: float) -> float:
    """Return how much of a budget may be spent when a stage's share ends; select leaves `kept` over for confirm."""
    end = total * TENTHS[stage] / 10
    return max(total * TENTHS["search"] / 10, min(end, total - kept)) if stage == "select" else end


def most_confirmed(study: StudySettings, tree: dict[str, Any]) -> int:
    """Return the upper bound of the number of confirmed recipes: the best, the published, and their baselines."""
    searched = parameters(tree)
    published = len(study.published) if study.confirm.published else 0
    students = len(combinations(tree, ("student",)))
    if study.tradeoff is None:
        compared = compared_choice(study, searched)
        return (1 if compared is None else len(compared.labels)) + published + students
    if any(each.kind != "choice" and each.path[0] == "student" for each in searched):
        students = study.most_trials
    most = study.select.candidates  # of a front, which has at most one point of each student
    return min(most, students) + published + min(most + published, students)


def kept_epochs(study: StudySettings, tree: dict[str, Any]) -> int:
    """Return the upper bound of the epochs of the confirming seeds that select leaves over."""
    return min(SEEDS_KEPT, study.confirm.seeds) * most_confirmed(study, tree) * longest_training(tree)


def missing_trials(study: Any) -> Iterator[Problem]:
    """Yield a problem if a study says neither how many trials it has nor what it may spend."""
    if isinstance(study, dict) and study.get("trials") is None and study.get("budget") is None:
        yield Problem(("study", "trials"), "is missing; write it, or study.budget")


def budget_problems(study: StudySettings, tree: dict[str, Any]) -> Iterator[Problem]:
    """Yield a problem if a budget of epochs is too small for one batch of each search and a few confirming seeds."""
    if study.budget is None or study.budget.epochs is None:
        return
    longest, kept = longest_training(tree), kept_epochs(study, tree)
    shared = parameters({**{key: value for key, value in tree.items() if key != "teacher"}, "method": None})
    batches = math.ceil(max(1, len(study.published)) / study.together)
    trials = min(study.most_trials, batches * study.together) if parameters(tree) else 1
    searched = (trials + (trials if shared else 1)) * longest
    search = TENTHS["search"]
    least = max(math.ceil(searched * 10 / search), math.ceil(kept * 10 / (10 - search)))
    if study.budget.epochs < least:
        first = "the first batch" if batches == 1 else f"the first {batches} batches, with the published points,"
        text = (
            f"must be >= {least}: {first} of each search can take {searched} epochs, for which there are"
            f" {search}0 %, and {min(SEEDS_KEPT, study.confirm.seeds)} confirming seeds {kept};"
            f" got {study.budget.epochs}"
        )
        yield Problem(("study", "budget", "epochs"), text)
