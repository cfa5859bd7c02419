"""A study that is carried out in this process."""

from pathlib import Path

import pytest
from studies import events, open_study, sweep_file

from kdtrain.errors import UserError
from kdtrain.executors import local


def test_what_breaks_is_a_reason_and_an_interrupt_passes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = [OSError(28, "No space left on device"), KeyboardInterrupt()]

    def broken(*_: object, **__: object) -> None:
        raise raised.pop(0)

    monkeypatch.setattr(local, "train", broken)
    file = sweep_file(tmp_path)
    study = open_study(file, tmp_path / "results")
    with pytest.raises(UserError, match=r"recipe.teacher: training .* failed: \[Errno 28\] No space left on device"):
        local.execute(study)
    with pytest.raises(KeyboardInterrupt):
        local.execute(open_study(file, tmp_path / "results"))
    assert [row["state"] for row in events(study) if row["event"] == "ended"] == ["complete", "failed"]
