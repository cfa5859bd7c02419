import math
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from made_up_study import MadeUpStudy

from analysis.accounts import duration, wall_seconds
from analysis.frame import NOT_ENDED, flatten, read_study, trials_csv
from kdtrain.errors import UserError
from kdtrain.trials.store import write_json

Maker = Callable[..., MadeUpStudy]


def test_missing_is_missing_and_a_failed_trial_has_no_score(made_up: Maker) -> None:
    made = made_up()
    made.trial("search", 0, [0.5, 0.6], state="failed", reason="out of memory", values={"optimizer.lr": 0.1})
    made.plan("search", 1, values={"optimizer.lr": 0.2})
    study = read_study(made.folder)
    assert list(study.trials["state"]) == ["failed", NOT_ENDED]
    for column in ("val/accuracy", "test/accuracy", "best_epoch"):
        assert study.trials[column].isna().all()
    assert math.isnan(study.values.loc[0, "method.temperature"])


def test_a_torn_last_line_is_passed_over(made_up: Maker) -> None:
    made = made_up()
    made.trial("search", 0, [0.5, 0.6])
    for path in (made.folder / "record.jsonl", made.store.trial("search0000").path / "epochs.jsonl"):
        with open(path, "a") as file:
            file.write('{"event": "planned", "epoch": 3, "val/acc')
    study = read_study(made.folder)
    assert len(study.trials) == 1
    assert list(study.epochs["epoch"]) == [1, 2]


def test_of_a_trial_recorded_twice_the_last_counts(made_up: Maker) -> None:
    made = made_up()
    made.trial("search", 0, [], state="failed", reason="killed")
    made.trial("search", 0, [0.5, 0.7])
    study = read_study(made.folder)
    assert list(study.trials["state"]) == ["complete"]
    assert list(study.trials["val/accuracy"]) == [0.7]
    assert study.trials["reason"].isna().all()


def test_a_trial_pruned_here_and_trained_on_by_another_study_shows_what_this_one_saw(made_up: Maker) -> None:
    made = made_up()
    made.trial("search", 0, [0.5, 0.7, 0.9], test=0.9)
    made.event(
        "ended",
        stage="search",
        number=0,
        trial_id="search0000",
        state="pruned",
        value=0.7,
        reason="",
        epochs=2,
    )
    row = read_study(made.folder).trials.iloc[0]
    assert (row["state"], row["epochs"], row["best_epoch"], row["val/accuracy"]) == ("pruned", 2, 2, 0.7)
    assert np.isnan(row["test/accuracy"])


def test_a_smoke_test_does_not_take_over_the_numbers_of_the_recipe_that_it_tries(made_up: Maker) -> None:
    made = made_up()
    made.trial("search", 0, [0.5, 0.7])
    made.plan("smoke", 0, trial_id="search0000")
    study = read_study(made.folder)
    assert study.stage("smoke")["val/accuracy"].isna().all()
    assert list(study.stage("smoke")["state"]) == [NOT_ENDED]


def test_a_candidate_confirmed_anew_from_another_trial_loses_its_old_runs(made_up: Maker) -> None:
    """Trials grew, a better recipe became `best 1`: the old one's runs must not be averaged in."""
    made = made_up()
    for number, seed in enumerate((1000, 1001)):
        source = {"stage": "search", "number": 3}
        made.trial("confirm", number, [0.8], seed=seed, candidate="best 1", role="best", source=source)
    source = {"stage": "search", "number": 30}
    made.plan("confirm", 0, candidate="best 1", role="best", source=source, seed=1000, trial_id="new")
    confirm = read_study(made.folder).stage("confirm")
    assert list(confirm["trial_id"]) == ["new"]


def test_finished_only_when_all_that_is_asked_for_has_ended(made_up: Maker) -> None:
    made = made_up(trials=1)
    made.trial("search", 0, [0.5])
    assert not read_study(made.folder).finished
    made.event("finished")
    assert read_study(made.folder).finished
    grown = made.description | {"study": made.description["study"] | {"trials": 2}}
    write_json(made.folder / "study.json", grown)
    assert not read_study(made.folder).finished
    made.plan("search", 1)
    assert not read_study(made.folder).finished
    made.trial("search", 1, [0.6])
    assert read_study(made.folder).finished


def test_wall_time_counts_only_while_the_driver_was_open(made_up: Maker) -> None:
    made = made_up()  # opened at second 1
    made.trial("search", 0, [0.5])  # planned at 2, ended at 3
    made.now += 5_000  # the machine slept
    made.event("opened", command="again")
    made.trial("search", 1, [0.5])
    assert wall_seconds(read_study(made.folder)) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3.14, "3.1 s"), (61, "1 min 1 s"), (59.97, "1 min 0 s"), (7_322, "2 h 2 min")]
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_trials_csv_has_a_row_a_trial_and_whole_numbers_stay_whole(whole: Maker) -> None:
    made = whole()
    study = read_study(made.folder)
    (made.folder / "trials.csv").write_text(trials_csv(study))
    table = pd.read_csv(made.folder / "trials.csv", dtype=str)
    assert len(table) == len(study.trials)
    confirmed = table[table["candidate"] == "best 1"]
    assert list(confirmed["seed"]) == ["1000", "1001", "1002", "1003", "1004"]
    assert confirmed["test/accuracy"].notna().all()
    failed = table[table["state"] == "failed"].iloc[0]
    assert failed["reason"] == "the loss is not finite at step 21"
    assert pd.isna(failed["val/accuracy"])
    assert float(failed["recipe.optimizer.lr"]) > 0


def test_a_searched_parameter_may_be_called_as_a_metric_is(made_up: Maker) -> None:
    epochs = {"name": "epochs", "kind": "int", "low": 1, "high": 9, "choices": None, "conditions": {}}
    made = made_up(parameters=(epochs,))
    made.trial("search", 0, [0.5, 0.6], values={"epochs": 7})
    head, row = trials_csv(read_study(made.folder)).splitlines()
    cells = dict(zip(head.split(","), row.split(","), strict=True))
    assert (cells["recipe.epochs"], cells["epochs"]) == ("7", "2")


def test_flatten_gives_dotted_paths() -> None:
    assert flatten({"a": {"b": 1, "c": [1, 2]}, "d": None}) == {"a.b": 1, "a.c": [1, 2], "d": None}


def test_no_folder_no_sweep_and_a_newer_schema_are_told_in_a_sentence(made_up: Maker) -> None:
    made = made_up()
    results = made.folder.parent
    with pytest.raises(UserError, match="no such folder; give a sweep's folder, for example results/digits_kd"):
        read_study(results / "absent")
    with pytest.raises(UserError, match=r"is not a sweep's folder, it has no study.json; sweeps in it: .*made_up"):
        read_study(results)
    write_json(made.folder / "study.json", made.description | {"schema": 2})
    with pytest.raises(UserError, match="schema 2, written by a newer kdtrain"):
        read_study(made.folder)


def test_a_study_json_that_lacks_what_is_read_is_refused_by_the_names(made_up: Maker) -> None:
    made = made_up()
    parameters = [{key: value for key, value in made.description["parameters"][0].items() if key != "kind"}]
    write_json(made.folder / "study.json", made.description | {"parameters": parameters})
    with pytest.raises(UserError, match=r"study.json: lacks parameters\[0\].kind; remove it"):
        read_study(made.folder)
    write_json(made.folder / "study.json", {"schema": 1, "name": "made_up"})
    with pytest.raises(UserError, match=r"study.json: lacks study, parameters; remove it"):
        read_study(made.folder)
