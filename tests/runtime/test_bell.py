"""Tune's loop rests until a trial's process rings."""

import threading
import time
from pathlib import Path

import pytest

from kdtrain import bell
from kdtrain.bell import Bell

LONG_S = 60.0


@pytest.fixture
def patient(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bell:
    """It would rest for a minute."""
    monkeypatch.setattr(bell, "SETTLED_S", 0.0)
    monkeypatch.setattr(bell, "REST_S", LONG_S)
    return Bell(tmp_path / "bell")


def seconds(rest) -> float:
    started = time.monotonic()
    rest()
    return time.monotonic() - started


def test_before_the_first_ring_there_is_no_rest(patient: Bell) -> None:
    assert seconds(patient.rest) < LONG_S / 2


def test_a_ring_of_another_process_ends_the_rest(patient: Bell) -> None:
    patient.ring()
    other = threading.Timer(0.3, Bell(patient.file).ring)
    other.start()
    assert 0.2 < seconds(patient.rest) < LONG_S / 2
    other.join()


def test_just_after_a_ring_there_is_no_rest(patient: Bell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bell, "SETTLED_S", LONG_S)
    patient.ring()
    assert seconds(patient.rest) < LONG_S / 2


def test_without_a_ring_the_rest_has_an_end(patient: Bell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bell, "REST_S", 0.3)
    patient.ring()
    assert seconds(patient.rest) >= 0.3


def test_ringing_where_the_sweep_has_ended_is_no_error(tmp_path: Path) -> None:
    gone = Bell(tmp_path / "removed" / "bell")
    gone.ring()
    assert not gone.file.exists()
