"""Notes on a sampler and a pruner: random parameters, too few trials, early rungs; and the code of own classes."""

import sys
from pathlib import Path
from typing import Any

import pytest
from test_search_contract import METHODS, OWN, SPACE, sweep_of

from kdtrain.errors import UserError
from kdtrain.study.inputs import input_notes
from kdtrain.study.journal import StudyJournal
from kdtrain.study.search_notes import own_code, search_notes


def notes(folder: Path, recipe: dict[str, Any], **study: Any) -> list[str]:
    return search_notes(sweep_of(folder, recipe, **study))


def test_gp_and_cmaes_name_the_parameters_that_they_draw_at_random(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, SPACE, trials=40, sampler={"name": "gp"})
    assert note.endswith("it draws at random: optimizer[adam].lr, optimizer[sgd].lr, optimizer[sgd].momentum")
    (note,) = notes(tmp_path, SPACE, trials=40, sampler={"name": "cmaes"})
    assert note.endswith(
        "it draws at random: optimizer, optimizer[adam].lr, optimizer[sgd].lr, optimizer[sgd].momentum"
    )
    assert notes(tmp_path, SPACE, trials=40, sampler={"name": "tpe"}) == []


def test_of_options_with_equal_trials_only_what_is_conditional_within_an_option_is_random(tmp_path: Path) -> None:
    apart = notes(tmp_path, METHODS, trials=40, sampler={"name": "gp", "startup_trials": 2})
    assert all("method" not in note.partition("random: ")[2] for note in apart)
    together = {"candidates": 2, "equal_trials": False}
    (_, note) = sorted(notes(tmp_path, METHODS, trials=40, select=together, sampler={"name": "gp"}), key=len)
    assert "method[kd].temperature" in note.partition("random: ")[2]


@pytest.mark.parametrize(
    ("trials", "batch", "expected"), [(12, 4, True), (13, 4, False), (10, 5, True), (11, 5, False), (14, 16, True)]
)
def test_a_search_that_ends_before_the_sampler_learns_is_named(
    tmp_path: Path, trials: int, batch: int, expected: bool
) -> None:
    """10 random trials: a batch is suggested at once, so the first trial that learns begins a batch."""
    found = notes(tmp_path, SPACE, trials=trials, batch=batch, sampler={"name": "tpe"})
    assert [note.startswith(f"study.trials: with {trials} trials all are random") for note in found] == [
        True
    ] * expected


def test_options_share_the_trials_so_each_needs_its_own_start(tmp_path: Path) -> None:
    (note,) = notes(tmp_path, METHODS, trials=20, sampler={"name": "tpe"})
    assert "tpe learns from 10 trials of each of 2 options" in note
    assert notes(tmp_path, METHODS, trials=21, sampler={"name": "tpe"}) == []


@pytest.mark.parametrize(
    ("schedule", "start", "expected"),
    [
        ({"name": "cosine", "warmup_epochs": 3}, {"min_epochs": 1}, "at epochs 1, 3 of 9, inside the warm-up"),
        ({"name": "cosine", "warmup_epochs": 3}, {"min_share": 0.34}, None),
        (
            {"name": "step", "every_epochs": 4},
            {"min_epochs": 3},
            "at epoch 3 of 9, before the first drop of the learning",
        ),
        ({"name": "step", "every_epochs": 9}, {"min_epochs": 3}, None),
        ({"name": "constant"}, {"min_epochs": 1}, None),
        ({"name": "exponential", "factor": 0.9}, {"min_epochs": 1}, None),
    ],
)
def test_a_rung_inside_warm_up_or_before_the_first_drop_is_named(
    tmp_path: Path, schedule: dict[str, Any], start: dict[str, Any], expected: str | None
) -> None:
    pruner = {"name": "asha", **start}
    recipe = {**SPACE, "lr_schedule": schedule}
    found = notes(tmp_path, recipe, trials=40, pruner=pruner)
    assert len(found) == (expected is not None)
    assert all(str(expected) in note for note in found)


def test_a_warm_up_in_steps_is_counted_in_epochs(tmp_path: Path) -> None:
    """The 898 digits make 29 steps of 32; a tenth of 9 epochs is 0.9 epochs, before epoch 1."""
    published = {"name": "cosine_in_steps", "convention": "published", "warmup_steps": 58, "total_steps": 261}
    for schedule, expected in ((published, ["at epoch 1 of 9, inside the warm-up of the learning rate, which takes 2"]),
                               ({"name": "cosine_in_steps"}, [])):  # fmt: skip
        recipe = {**SPACE, "lr_schedule": schedule, "batch_size": 32, "data": {"name": "digits", "resolution": 16}}
        found = notes(tmp_path, recipe, trials=40, pruner={"name": "asha", "min_epochs": 1})
        assert len(found) == len(expected)
        assert all(text in note for text, note in zip(expected, found, strict=True))


def test_check_shows_the_notes(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SPACE, trials=8)
    assert any(note.startswith("study.trials: with 8 trials all are random") for note in input_notes(sweep, None))


def test_a_study_is_not_continued_with_an_edited_sampler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def record(text: str, name: str) -> Any:
        (tmp_path / f"{name}.py").write_text(text)
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, name)
        sweep = sweep_of(tmp_path, SPACE, sampler={"name": f"{name}:Halving"})
        study = {**sweep.study.model_dump(mode="json"), "sampler": "the same"}
        return {"recipe": sweep.tree, "study": study, "own_code": own_code(sweep)}

    first = record(OWN, "own_first")
    assert list(first["own_code"]) == ["study.sampler"]
    journal = StudyJournal(tmp_path / "results")
    journal.open(first, "")
    journal.open(record("# A comment changes nothing.\n" + OWN, "own_second"), "")
    with pytest.raises(UserError, match=r"own_code\.study\.sampler was '\w{32}', is '\w{32}'"):
        journal.open(record(OWN.replace("0.5", "0.25"), "own_third"), "")


def test_a_warm_up_that_is_longer_than_the_training_and_too_few_confirming_seeds_are_notes(tmp_path: Path) -> None:
    method = {"name": "dkd", "balance": {"weight": 1.0}, "warmup_epochs": 4}
    for epochs, warned in ((3, True), (4, False)):
        found = notes(tmp_path, {**SPACE, "method": method, "epochs": epochs})
        assert any("dkd reaches its weight after 4 epochs" in note for note in found) == warned
    for seeds, warned in ((2, True), (3, False)):
        found = notes(tmp_path, SPACE, confirm={"seeds": seeds})
        assert any(note.startswith("study.confirm.seeds") for note in found) == warned
