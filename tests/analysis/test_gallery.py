"""The pictures that need a network: drawn from arrays, or the reason why they are absent."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from made_up_study import MadeUpStudy, every_array, gradcam_arrays
from matplotlib.text import Text

from analysis import style
from analysis.gallery import drawings, reasons
from analysis.report import write_report


def test_the_reason_of_a_picture_that_could_not_be_computed_is_kept() -> None:
    arrays = gradcam_arrays("none") | {"gradcam_encoder_reason": np.array("no libGL.so.1")}
    assert reasons(arrays) == [("Grad-CAM with `student.freeze: encoder`", "no libGL.so.1")]


def test_damaged_or_incomplete_arrays_cost_the_picture_and_not_the_report(made_up: Callable[..., MadeUpStudy]) -> None:
    made = made_up()
    np.savez(made.folder / "pictures.npz", lr_steps=np.arange(4))
    text = write_report(made.folder).read_text()
    assert "There is no picture of `lr_schedule.png`: pictures.npz has no array 'lr_rates'" in text
    (made.folder / "pictures.npz").write_bytes(b"torn")
    assert "There is no picture of the networks: pictures.npz: cannot be read" in write_report(made.folder).read_text()
    assert not list(made.folder.glob("*.png"))


def texts(name: str, arrays: dict[str, Any]) -> str:
    """Return all text of a picture."""
    with style.look():
        figure = drawings(arrays)[name]()
    assert figure is not None
    return "\n".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]


def test_gradcam_shows_stage_freeze_and_whether_each_network_is_right() -> None:
    shown = texts("gradcam_encoder.png", gradcam_arrays("encoder"))
    assert "teacher\nresnet50\nstage 16, 4 x 4\nfreeze: none" in shown
    assert "student alone\nresnet18\nstage 16, 4 x 4\nfreeze: encoder" in shown
    assert shown.count("right") == 3
    assert shown.count("wrong: ants") == 9
    assert "no student alone" not in shown
    assert "no student alone" in texts("gradcam_none.png", gradcam_arrays("none", networks=2))


@pytest.mark.parametrize(
    ("warmup", "words"), [(15, "step 15, epoch 1.5"), (40, "warm-up of 40 steps does not end"), (0, "10 per epoch")]
)
def test_the_end_of_the_warm_up_is_marked_if_there_is_one(warmup: int, words: str) -> None:
    shown = texts("lr_schedule.png", every_array() | {"lr_warmup_steps": np.array(warmup)})
    assert words in shown
    assert ("warm-up" in shown) == (warmup > 0)


def test_each_mixed_image_has_both_shares_and_classes() -> None:
    arrays = every_array() | {"mixed_shares": np.full(25, 0.75, dtype=np.float32)}
    assert "0.75 of 48, 0.25 of 49" in texts("mixed_images.png", arrays)


def test_a_map_of_fewer_than_four_by_four_pixels_is_not_drawn_but_has_a_reason() -> None:
    arrays = gradcam_arrays("none")
    assert reasons(arrays) == []
    arrays["gradcam_none_sizes"] = np.array([[8, 8], [2, 2], [8, 8]])
    assert drawings(arrays)["gradcam_none.png"]() is None
    ((what, reason),) = reasons(arrays)
    assert "none" in what
    assert "2 x 2" in reason
