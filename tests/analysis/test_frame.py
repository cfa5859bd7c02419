import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from made_up_study import MadeUpStudy, number

from analysis.cost import wall_seconds
from analysis.frame import NOT_ENDED, Study, read_study, trials_csv
from kdtrain.errors import UserError
from kdtrain.trials.store import STUDY_SCHEMA

Maker = Callable[..., MadeUpStudy]


def test_a_failed_trial_has_no_score(made_up: Maker) -> None:
    made = made_up()
    made.trial("search", 0, [0.5, 0.6], state="failed", reason="out of memory")
    assert read_study(made.folder).trials[["val/accuracy", "test/accuracy", "best_epoch"]].isna().all(axis=None)


def test_a_torn_last_line_is_passed_over(made_up: Maker) -> None:
    made = made_up()
    made.trial("search", 0, [0.5, 0.6])
    for path in (made.folder / "record.jsonl", made.store.trial("search0000").path / "epochs.jsonl"):
        path.write_text(path.read_text() + '{"event": "planned", "epoch": 3, "val/acc')
    study = read_study(made.folder)
    assert (len(study.trials), list(study.epochs["epoch"])) == (1, [1, 2])


def test_of_a_trial_recorded_twice_the_last_counts(made_up: Maker) -> None:
    made = made_up()
    made.trial("search", 0, [], state="failed", reason="killed")
    made.trial("search", 0, [0.5, 0.7])
    trials = read_study(made.folder).trials[["state", "val/accuracy", "reason"]]
    assert trials.values.tolist() == [["complete", 0.7, None]]


def test_a_trial_pruned_here_and_trained_on_by_another_study_shows_what_this_one_saw(made_up: Maker) -> None:
    made = made_up()
    made.trial("search", 0, [0.5, 0.7, 0.9], test=0.9)
    made.end("search", 0, "search0000", "pruned", value=0.7, reason="", epochs=2)
    row = read_study(made.folder).trials.iloc[0]
    assert (row["state"], row["epochs"], row["best_epoch"], row["val/accuracy"]) == ("pruned", 2, 2, 0.7)
    assert np.isnan(row["test/accuracy"])


def test_a_smoke_test_does_not_take_over_the_numbers_of_the_recipe_that_it_tries(made_up: Maker) -> None:
    made = made_up()
    made.trial("search", 0, [0.5, 0.7])
    made.plan("smoke", 0, trial_id="search0000")
    (smoke,) = read_study(made.folder).stage("smoke").to_dict("records")
    assert (smoke["state"], np.isnan(smoke["val/accuracy"])) == (NOT_ENDED, True)


def test_a_candidate_confirmed_anew_from_another_trial_loses_its_old_runs(made_up: Maker) -> None:
    """Trials grew, a better recipe became `best`: the old one's runs must not be averaged in."""
    made = made_up()
    old, new = ({"candidate": "best", "role": "best", "source": {"stage": "search", "number": i}} for i in (3, 30))
    for i in range(2):
        made.trial("confirm", i, [0.8], seed=1000 + i, **old)
    made.plan("confirm", 0, seed=1000, trial_id="new", **new)
    assert list(read_study(made.folder).stage("confirm")["trial_id"]) == ["new"]


def test_finished_only_when_all_that_is_asked_for_has_ended(made_up: Maker) -> None:
    made = made_up(trials=1)
    steps: list[tuple[Callable[[], Any], bool]] = [
        (lambda: made.trial("search", 0, [0.5]), False),
        (lambda: made.event("finished"), True),
        (lambda: made.describe(study=made.description["study"] | {"trials": 2}), False),
        (lambda: made.plan("search", 1), False),
        (lambda: made.trial("search", 1, [0.6]), True),
    ]
    for step, finished in steps:
        step()
        assert read_study(made.folder).finished == finished


def test_wall_time_counts_only_while_the_driver_was_open(made_up: Maker) -> None:
    made = made_up()  # opened at second 1
    made.trial("search", 0, [0.5])  # planned at 2, ended at 3
    made.now += 5_000  # the machine slept
    made.event("opened", command="again")
    made.trial("search", 1, [0.5])
    assert wall_seconds(read_study(made.folder)) == pytest.approx(4.0)


def test_trials_csv_has_a_row_a_trial_and_whole_numbers_stay_whole(finished: Study) -> None:
    table = pd.read_csv(io.StringIO(trials_csv(finished)), dtype=str)
    assert len(table) == len(finished.trials)
    confirmed = table[table["candidate"] == "best"]
    assert list(confirmed["seed"]) == ["1000", "1001", "1002", "1003", "1004"]
    assert confirmed["test/accuracy"].notna().all()
    assert list(table.loc[table["state"] == "failed", "reason"]) == ["epoch 3, step 21: train/loss is nan"]


def test_a_searched_parameter_may_be_called_as_a_metric_is(made_up: Maker) -> None:
    made = made_up(parameters=(number("epochs", "int", 1, 9),))
    made.trial("search", 0, [0.5, 0.6], values={"epochs": 7})
    head, row = trials_csv(read_study(made.folder)).splitlines()
    cells = dict(zip(head.split(","), row.split(","), strict=True))
    assert (cells["recipe.epochs"], cells["epochs"]) == ("7", "2")


def test_a_folder_that_is_not_that_of_a_sweep_and_a_newer_schema_are_refused(made_up: Maker) -> None:
    made = made_up()
    results = made.folder.parent
    with pytest.raises(UserError, match=rf"^{results}/absent: "):
        read_study(results / "absent")
    with pytest.raises(UserError, match=r"study.json; sweeps in it: .*made_up"):
        read_study(results)
    made.describe(schema=STUDY_SCHEMA + 1)
    with pytest.raises(UserError, match=f"schema {STUDY_SCHEMA + 1}"):
        read_study(made.folder)


def test_a_study_json_without_fields_that_are_read_is_refused_with_their_names(made_up: Maker) -> None:
    made = made_up()
    made.describe(parameters=[{key: value for key, value in number("lr").items() if key != "kind"}])
    with pytest.raises(UserError, match=r"study.json: lacks parameters\[0\].kind;"):
        read_study(made.folder)
    del made.description["study"], made.description["parameters"]
    made.describe()
    with pytest.raises(UserError, match=r"study.json: lacks study, parameters;"):
        read_study(made.folder)
