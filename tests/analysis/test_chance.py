"""Which networks a report says have learned nothing."""

from collections.abc import Callable
from typing import Any

from analysis.chance import chance_remarks
from analysis.frame import read_study

CHANCE = "not better than the most frequent class (25.00% of the validation images): nothing was learned"


def with_counts(made: Any, *trial_ids: str) -> None:
    """Write that 90 of the 360 validation images are of the most frequent class."""
    for trial_id in trial_ids:
        folder = made.store.trial(trial_id)
        row = folder.recipe()
        folder.write_recipe(row | {"data": row["data"] | {"val_most_frequent": 90}})


def test_a_network_that_is_not_above_the_most_frequent_class_has_learned_nothing(made_up: Callable[..., Any]) -> None:
    made = made_up()
    ids = [made.trial("teacher", 0, [0.25], model="lenet5_teacher")]
    ids += [made.trial("search", number, [accuracy]) for number, accuracy in enumerate((0.2, 0.25, 90 / 360))]
    ids += [made.trial("baselines", 0, [0.1]), made.trial("baselines", 1, [91 / 360])]
    for number, accuracy in enumerate((0.3, 0.25, 0.1)):
        seed = 7_000 + number
        ids.append(made.trial("confirm", number, [accuracy], seed=seed, candidate="best", role="best"))
    assert chance_remarks(read_study(made.folder)) == [], "results of earlier versions have no counts"
    with_counts(made, *ids)
    assert chance_remarks(read_study(made.folder)) == [
        f"The teacher lenet5_teacher is {CHANCE}.",
        f"Stage search: none of the 3 complete trials has learned: each is {CHANCE}.",
        f"Best: 2 of 3 runs (seeds 7001, 7002) are {CHANCE}.",
    ]


def test_the_seed_tells_which_of_equal_teachers_has_learned_nothing(made_up: Callable[..., Any]) -> None:
    made = made_up()
    ids = [
        made.trial("teacher", i, [accuracy], model="lenet5_teacher", seed=i) for i, accuracy in enumerate((0.9, 0.2))
    ]
    with_counts(made, *ids)
    assert chance_remarks(read_study(made.folder)) == [f"The teacher lenet5_teacher, seed 1, is {CHANCE}."]


def test_a_network_that_knows_the_rare_classes_has_learned_something(made_up: Callable[..., Any]) -> None:
    made = made_up()
    ids = [made.trial("search", number, [0.2]) for number in range(2)]
    with_counts(made, *ids)
    for trial_id, mpa in zip(ids, (0.5, 0.6), strict=True):
        folder = made.store.trial(trial_id)
        row = folder.recipe()
        folder.write_recipe(row | {"data": row["data"] | {"val_classes": 2}})
        outcome = folder.outcome()
        folder.write_outcome(outcome | {"best": outcome["best"] | {"val/mpa": mpa}})
    assert chance_remarks(read_study(made.folder)) == []
