"""A study that is carried out in this process."""

from pathlib import Path

import pytest
from studies import events, open_study, sweep_file

from kdtrain.errors import NoResult
from kdtrain.executors import local


def test_what_breaks_is_a_reason_and_an_interrupt_passes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[BaseException] = [OSError(28, "No space left on device"), KeyboardInterrupt()]

    def broken(*_: object, **__: object) -> None:
        raise raised.pop(0)

    monkeypatch.setattr(local, "train", broken)
    file = sweep_file(tmp_path, resources={"retries": 0})
    study = open_study(file, tmp_path / "results")
    with pytest.raises(
        NoResult, match=r"recipe.teacher: training .* broke: OSError: \[Errno 28\] No space left on device"
    ):
        local.execute(study)
    with pytest.raises(KeyboardInterrupt):
        local.execute(open_study(file, tmp_path / "results"))
    assert [row["state"] for row in events(study) if row["event"] == "ended"] == ["complete", "broken"]
