"""What a training's process is prepared with."""

import gc

from kdtrain.environment import prepare_process


def test_what_imports_made_is_left_out_of_collections_and_nothing_that_came_later() -> None:
    prepare_process(1)
    frozen = gc.get_freeze_count()
    later = [[number] for number in range(1000)]
    prepare_process(1)
    assert gc.get_freeze_count() == frozen > 10_000
    assert len(later) == 1000
