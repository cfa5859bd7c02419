"""Shared folders: units written whole, computed once, found damaged, evicted when nobody holds them."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from kdtrain.storage import cache
from kdtrain.storage.cache import Cache, SharedFolder, Tensors

MIB = 1 << 20


def rows(number: int) -> Tensors:
    return {"logits": torch.full((4, 3), float(number))}


def opened(root: Path, name: str = "a", expected: int = 100, budget: int = MIB) -> SharedFolder:
    folder = Cache(root, budget).folder({"name": name}, lambda: expected)
    assert folder is not None
    return folder


def test_what_was_filled_is_read_by_others_and_computed_by_none(tmp_path: Path) -> None:
    opened(tmp_path).fill(range(3), rows)
    other = opened(tmp_path)
    other.fill(range(3), lambda number: pytest.fail("is there already"))
    assert [other.load(number)["logits"][0, 0].item() for number in range(3)] == [0.0, 1.0, 2.0]
    assert other.computed == 0


def test_other_ingredients_are_another_folder(tmp_path: Path) -> None:
    assert opened(tmp_path).path != opened(tmp_path, "b").path


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_unit_is_computed_again(tmp_path: Path, damage: str) -> None:
    opened(tmp_path).fill(range(2), rows)
    (unit,) = opened(tmp_path).path.glob("unit-1-*")
    data = bytearray(unit.read_bytes())
    data[-1] ^= 1
    unit.write_bytes({"cut": data[:-7], "flipped": data, "empty": b""}[damage])
    again = opened(tmp_path)
    again.fill(range(2), rows)
    assert again.computed == 1
    assert again.load(1)["logits"][0, 0].item() == 1.0


def test_a_missing_unit_is_no_silence(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no unit 5"):
        opened(tmp_path).load(5)


def fill_slowly(root: Path, start: float, units: int, unit_s: float, out: "multiprocessing.Queue[int]") -> None:
    folder = opened(root)
    time.sleep(max(0.0, start - time.time()))

    def slowly(number: int) -> Tensors:
        time.sleep(unit_s)
        return rows(number)

    folder.fill(range(units), slowly)
    out.put(folder.computed)


def filled_together(root: Path, processes: int, units: int, unit_s: float) -> list[int]:
    """How many units each of the processes, which start together, has computed."""
    context = multiprocessing.get_context("fork")
    out: multiprocessing.Queue[int] = context.Queue()
    arguments = (root, time.time() + 0.3, units, unit_s, out)
    started = [context.Process(target=fill_slowly, args=arguments) for _ in range(processes)]
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


def claim_and_die(root: Path) -> None:
    folder = opened(root)
    assert folder._claim(0)
    os._exit(9)


def test_the_claim_of_a_process_that_died_is_nobodys(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=claim_and_die, args=(tmp_path,))
    process.start()
    process.join()
    folder = opened(tmp_path)
    folder.fill(range(1), rows)
    assert folder.computed == 1


def claim_and_hang(root: Path, ready: "multiprocessing.synchronize.Event") -> None:
    folder = opened(root)
    assert folder._claim(0)
    ready.set()
    time.sleep(60)


def test_a_claim_that_hangs_is_waited_for_no_longer_than_the_patience(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "PATIENCE_S", 0.2)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=claim_and_hang, args=(tmp_path, ready))
    process.start()
    ready.wait(30)
    folder = opened(tmp_path)
    folder.fill(range(1), rows)
    assert folder.computed == 1
    process.kill()
    process.join()


def test_work_is_shared_however_long_all_of_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than the patience, which is for one unit."""
    monkeypatch.setattr(cache, "PATIENCE_S", 1.5)
    assert sum(filled_together(tmp_path, processes=2, units=40, unit_s=0.1)) == 40


def hold_until(event: "multiprocessing.synchronize.Event") -> None:
    event.wait(60)


def test_a_closed_folder_is_free_though_a_child_process_has_inherited_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    event = context.Event()
    folder = opened(tmp_path)
    child = context.Process(target=hold_until, args=(event,))
    child.start()
    assert cache._held(folder.path)
    folder.close()
    assert not cache._held(folder.path)
    event.set()
    child.join()


def test_there_is_nothing_to_hold_of_a_folder_that_was_removed(tmp_path: Path) -> None:
    assert not SharedFolder(tmp_path / "gone").hold()


def test_room_that_is_yet_to_be_filled_is_taken(tmp_path: Path) -> None:
    opened(tmp_path, "first", 600, 1000)
    assert Cache(tmp_path, 1000).folder({"name": "second"}, lambda: 600) is None


def test_nothing_is_removed_where_it_would_not_be_enough(tmp_path: Path) -> None:
    opened(tmp_path, "old", 500, 1000).close()
    opened(tmp_path, "held", 400, 1000)
    assert Cache(tmp_path, 1000).folder({"name": "large"}, lambda: 700) is None
    assert len(list(tmp_path.glob("*/about.json"))) == 2
    assert Cache(tmp_path, 1000).folder({"name": "fits"}, lambda: 600) is not None
    assert not any('"old"' in about.read_text() for about in tmp_path.glob("*/about.json"))


def test_what_a_killed_process_was_removing_goes_with_the_next(tmp_path: Path) -> None:
    half = tmp_path / f".{'0' * 32}.removed"
    half.mkdir(parents=True)
    (half / "unit-0-1.safetensors").write_bytes(b"half")
    opened(tmp_path)
    assert not half.exists()


def test_the_least_recently_used_make_room_but_not_what_is_held(tmp_path: Path) -> None:
    size = 1000
    for age, name in enumerate(("old", "held", "new")):
        folder = opened(tmp_path, name, size, 4000)
        folder.fill(range(1), lambda number: {"x": torch.zeros(size - 100, dtype=torch.uint8)})
        os.utime(folder.path / ".in_use", (age, age))
        if name != "held":
            folder.close()
    used = Cache(tmp_path, 4000).used_bytes()
    assert 2700 < used < 3300
    opened(tmp_path, "next", 2500, 4000)
    names = [path.read_text() for path in tmp_path.glob("*/about.json")]
    assert not any("old" in text or "new" in text for text in names)
    assert any("held" in text for text in names)
    assert Cache(tmp_path, 4000).folder({"name": "too large"}, lambda: 4001) is None
    assert Cache(tmp_path, 4000).folder({"name": "no room beside what is held"}, lambda: 3500) is None
