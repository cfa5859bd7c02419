"""The cache of a node: units are computed once, recognised if damaged, and evicted if nobody uses them."""

import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from kdtrain.storage import cache
from kdtrain.storage.cache import Cache, SharedFolder, Tensors

FORK = multiprocessing.get_context("fork")


def rows(number: int) -> Tensors:
    return {"logits": torch.full((4, 3), float(number))}


def opened(root: Path, name: str = "a", expected: int = 100, budget: int = 1 << 20) -> SharedFolder:
    folder = Cache(root, budget).folder({"name": name}, lambda: expected)
    assert folder is not None
    return folder


def names(root: Path) -> set[str]:
    """Return the names that the folders of a cache were opened with."""
    return {about.read_text().split('"')[3] for about in root.glob("*/about.json")}


def test_units_are_computed_once_and_read_by_others(tmp_path: Path) -> None:
    opened(tmp_path).fill(range(3), rows)
    other = opened(tmp_path)
    other.fill(range(3), lambda number: pytest.fail("is there already"))
    assert [other.load(number)["logits"][0, 0].item() for number in range(3)] == [0.0, 1.0, 2.0]
    assert other.computed == 0
    assert opened(tmp_path, "b").path != other.path
    with pytest.raises(KeyError, match="unit 5"):
        other.load(5)


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "dropped"])
def test_a_damaged_unit_is_computed_again(tmp_path: Path, damage: str) -> None:
    opened(tmp_path).fill(range(2), rows)
    again = opened(tmp_path)
    (unit,) = again.path.glob("unit-1-*")
    data = bytearray(unit.read_bytes())
    data[-1] ^= 1
    if damage == "dropped":
        again.drop(1)
    else:
        unit.write_bytes({"cut": data[:-7], "flipped": data, "empty": b""}[damage])
    again.fill(range(2), rows)
    assert again.computed == 1
    assert again.load(1)["logits"][0, 0].item() == 1.0


def fill_slowly(root: Path, start: float, units: int, unit_s: float, out: "multiprocessing.Queue[int]") -> None:
    folder = opened(root)
    time.sleep(max(0.0, start - time.time()))

    def slowly(number: int) -> Tensors:
        time.sleep(unit_s)
        return rows(number)

    folder.fill(range(units), slowly)
    out.put(folder.computed)


def filled_together(root: Path, processes: int, units: int, unit_s: float) -> list[int]:
    """Return how many units each of the processes has computed, which start together."""
    out: multiprocessing.Queue[int] = FORK.Queue()
    arguments = (root, time.time() + 0.3, units, unit_s, out)
    started = [FORK.Process(target=fill_slowly, args=arguments) for _ in range(processes)]
    for process in started:
        process.start()
    counts = [out.get(timeout=60) for _ in started]
    for process in started:
        process.join()
    return counts


def test_processes_that_start_together_share_the_work(tmp_path: Path) -> None:
    counts = filled_together(tmp_path, processes=3, units=20, unit_s=0.02)
    assert sum(counts) == 20
    assert min(counts) > 0


def test_patience_counts_from_the_last_unit_however_long_all_of_them_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PATIENCE_S", 1.5)
    assert sum(filled_together(tmp_path, processes=2, units=40, unit_s=0.1)) == 40


def fill_first(root: Path, compute: Callable[[int], Tensors]) -> None:
    opened(root).fill(range(1), compute)


def test_the_lease_of_a_process_that_has_died_has_ended(tmp_path: Path) -> None:
    process = FORK.Process(target=fill_first, args=(tmp_path, lambda number: os._exit(9)))
    process.start()
    process.join()
    folder = opened(tmp_path)
    folder.fill(range(1), rows)
    assert folder.computed == 1


def test_a_unit_whose_process_hangs_is_computed_after_the_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PATIENCE_S", 0.2)
    leased = FORK.Event()

    def hang(number: int) -> Tensors:
        leased.set()
        time.sleep(60)
        return rows(number)

    process = FORK.Process(target=fill_first, args=(tmp_path, hang))
    process.start()
    leased.wait(30)
    started = time.monotonic()
    folder = opened(tmp_path)
    folder.fill(range(1), rows)
    assert folder.computed == 1
    assert time.monotonic() - started > 0.2
    process.kill()
    process.join()


def test_a_closed_folder_can_be_evicted_though_a_child_process_has_inherited_its_lock(tmp_path: Path) -> None:
    ended = FORK.Event()
    folder = opened(tmp_path, "a", 600, 1000)
    child = FORK.Process(target=ended.wait, args=(60,))
    child.start()
    assert Cache(tmp_path, 1000).folder({"name": "b"}, lambda: 600) is None
    folder.close()
    assert Cache(tmp_path, 1000).folder({"name": "b"}, lambda: 600) is not None
    ended.set()
    child.join()


def test_a_folder_that_was_removed_cannot_be_held(tmp_path: Path) -> None:
    assert not SharedFolder(tmp_path / "gone").hold()


def test_nothing_is_evicted_if_it_would_not_make_enough_room(tmp_path: Path) -> None:
    opened(tmp_path, "old", 500, 1000).close()
    opened(tmp_path, "held", 400, 1000)  # its expected units count though none is there yet
    assert Cache(tmp_path, 1000).folder({"name": "large"}, lambda: 700) is None
    assert names(tmp_path) == {"old", "held"}
    opened(tmp_path, "fits", 600, 1000)
    assert names(tmp_path) == {"held", "fits"}


def test_what_a_killed_process_was_removing_is_removed(tmp_path: Path) -> None:
    half = tmp_path / f".{'0' * 32}.removed"
    half.mkdir(parents=True)
    (half / "unit-0-1.safetensors").write_bytes(b"half")
    (tmp_path / "notes").mkdir()
    opened(tmp_path)
    assert not half.exists()
    assert (tmp_path / "notes").exists()


def test_the_least_recently_used_folders_are_evicted_but_none_in_use(tmp_path: Path) -> None:
    for age, name in enumerate(("held", "old", "new")):
        folder = opened(tmp_path, name, 1000, 4000)
        folder.fill(range(1), lambda number: {"x": torch.zeros(1000, dtype=torch.uint8)})  # and a header
        os.utime(folder.path / ".in_use", (age, age))
        if name != "held":
            folder.close()
    opened(tmp_path, "next", 1500, 4000).close()
    assert names(tmp_path) == {"held", "new", "next"}
    opened(tmp_path, "large", 2500, 4000)
    assert names(tmp_path) == {"held", "large"}
    assert Cache(tmp_path, 4000).folder({"name": "too large"}, lambda: 4001) is None
    assert Cache(tmp_path, 4000).folder({"name": "no room beside those in use"}, lambda: 3500) is None
