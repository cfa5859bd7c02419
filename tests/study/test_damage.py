"""A study whose files were damaged makes them again, to the same decisions; its journal is never guessed at."""

import shutil
from pathlib import Path

import pytest
from studies import carry_out, decisions, open_study, plans, sweep_file

from analysis.frame import read_study
from kdtrain.errors import DamagedFile, UserError
from kdtrain.study.study import Study


def copied(finished: Study, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.workspace.store.results, tmp_path / "results"))


def flip(path: Path) -> Path:
    """Flip a bit in the middle of a file, in the value of a number if it is text."""
    data = bytearray(path.read_bytes())
    at = len(data) // 2
    if path.suffix in (".json", ".jsonl"):
        at = next(i for i in range(at, len(data)) if chr(data[i - 1]) in "0123456789." and chr(data[i]) in "2345678")
    data[at] ^= 1
    path.write_bytes(data)
    return path


def test_whatever_is_damaged_of_a_finished_study_is_made_again_to_the_same_decisions(
    finished: Study, tmp_path: Path
) -> None:
    results = copied(finished, tmp_path)

    def stored(stage: str, number: int, name: str) -> Path:
        return results / "trials" / plans(finished, stage)[number]["trial_id"] / name

    trained = [
        flip(stored("teacher", 0, "weights.safetensors")),
        flip(stored("baselines", 1, "recipe.json")),
        flip(stored("search", 0, "outcome.json")),
        flip(stored("search", 1, "epochs.jsonl")),
    ]
    tested = flip(stored("confirm", 0, "predictions.npz"))
    flip(results / "small" / "pictures.npz")
    with pytest.raises(DamagedFile) as caught:
        read_study(results / "small")
    assert all(str(path) in str(caught.value) for path in trained[1:])
    study = open_study(sweep_file(tmp_path), results)
    ran = carry_out(study)
    assert {job.trial_id for job in ran if job.kind == "train"} == {path.parent.name for path in trained}
    assert tested.parent.name in {study.workspace.trial_id(each) for job in ran for each in job.trained}
    assert ran[-1].kind == "pictures"
    assert all(str(path) in "\n".join(study.remarks) for path in trained)
    assert decisions(study) == decisions(finished)
    read_study(results / "small")


def test_a_damaged_journal_is_refused_and_without_it_nothing_is_trained_again(finished: Study, tmp_path: Path) -> None:
    results, file = copied(finished, tmp_path), sweep_file(tmp_path)
    journal = flip(results / "small" / "record.jsonl")
    with pytest.raises(DamagedFile, match=rf"^{journal}: line \d+ "):
        open_study(file, results)
    journal.unlink()
    study = open_study(file, results)
    assert not [job for job in carry_out(study) if job.kind == "train"]
    assert decisions(study) == decisions(finished)


def test_too_many_trials_by_mistake_are_taken_back(finished: Study, tmp_path: Path) -> None:
    results, file = copied(finished, tmp_path), sweep_file(tmp_path)
    carry_out(open_study(file, results, trials=300), jobs=3)  # two baselines, and the next one is planned
    carry_out(open_study(file, results, trials=8), jobs=2)  # both of the search
    with pytest.raises(UserError, match=r"study\.trials must be >= 8, .* got 7"):
        open_study(file, results, trials=7)
    back = open_study(file, results, trials=6)
    assert not [job for job in carry_out(back) if job.kind == "train"]
    assert decisions(back)[-1] == decisions(finished)[-1]
    study = read_study(results / "small")
    assert (len(study.stage("search")), study.events("trials_grown"), study.finished) == (6, [], True)


def test_a_search_that_was_only_planned_larger_binds_nobody(tmp_path: Path) -> None:
    file = sweep_file(tmp_path, study={"published": None})
    study = open_study(file, tmp_path / "results", trials=300)
    for number in range(20):
        study.journal.note("planned", stage="search", number=number, trial_id=f"{number:016x}", values={})
    open_study(file, tmp_path / "results", trials=8)
