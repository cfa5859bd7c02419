"""What a training's process is prepared with."""

import gc
import resource
import subprocess
import sys

from kdtrain.runtime.process import FreedMemory, prepare_process, resident_bytes


def test_what_imports_made_is_left_out_of_collections_and_nothing_that_came_later() -> None:
    prepare_process(1)
    frozen = gc.get_freeze_count()
    later = [[number] for number in range(1000)]
    prepare_process(1)
    assert gc.get_freeze_count() == frozen > 10_000
    assert len(later) == 1000


def test_a_trials_process_imports_without_collections_and_collects_from_then_on() -> None:
    script = (
        "import gc, kdtrain.executors.ray_worker\n"
        "print(gc.isenabled(), gc.get_stats()[2]['collections'], gc.get_freeze_count())"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert told[0] == "True"
    assert int(told[1]) < 3, "with collections there are a dozen"
    assert int(told[2]) > 100_000


def test_what_the_first_training_leaves_is_left_out_of_collections_too() -> None:
    freed, read_once = FreedMemory(), [[number] for number in range(5000)]
    counts = [gc.get_freeze_count()]
    for _ in range(3):
        freed.after_training()
        counts.append(gc.get_freeze_count())
    assert counts[1] > counts[0] + 5000
    assert counts[1] == counts[2] == counts[3]
    assert len(read_once) == 5000


def test_freed_memory_stays_until_a_process_has_grown_beyond_what_a_training_needs() -> None:
    freed = FreedMemory()
    grown = [2.8, 3.0, 3.4, 3.6, 1.2, 3.0, 3.6]  # GB after each: what the fourth left is given back, then the seventh's
    assert [freed.too_much(int(size * 1e9)) for size in grown] == [False, False, False, True, False, False, True]


def test_a_larger_training_is_given_back_once() -> None:
    freed = FreedMemory()
    assert [freed.too_much(size) for size in (100, 300, 300, 300, 370, 380)] == [False, True, False, False, False, True]


def test_resident_memory_is_this_processs_own() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 100e6 < resident_bytes() <= 1.1 * peak  # torch alone is larger
