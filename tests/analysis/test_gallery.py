"""The pictures that need a network: drawn from arrays, or the reason why they are absent."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from made_up_study import MadeUpStudy

from analysis import style
from analysis.gallery import drawings, reasons
from analysis.report import write_report

Maker = Callable[..., MadeUpStudy]
ROLES = np.array(["distilled", "teacher", "alone"])


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).random(shape, dtype=np.float32)


def gradcam_arrays(freeze: str, networks: int = 3) -> dict[str, Any]:
    parts = {
        "images": (noise(4, 32, 32, 3) * 255).astype(np.uint8),
        "classes": np.array(["ants", "bees", "012.Yellow_headed_Blackbird", "cat"]),
        "roles": ROLES[:networks],
        "models": np.array(["resnet18", "resnet50", "resnet18"])[:networks],
        "freezes": np.array([freeze, "none", freeze])[:networks],
        "stages": np.array(["16"] * networks),
        "sizes": np.array([[2, 2]] * networks),
        "named": np.array([["ants"] * 4] * networks),
        "right": np.array([[True, False, False, False]] * networks),
        "maps": noise(networks, 4, 32, 32),
    }
    return {f"gradcam_{freeze}_{name}": array for name, array in parts.items()}


def every_array() -> dict[str, Any]:
    maps = {f"attention_maps_{s}_{role}": noise(4, 64 // int(s), 64 // int(s)) for s in ("16", "32") for role in ROLES}
    return {
        "softened_image": np.arange(64, dtype=np.uint8).reshape(8, 8),
        "softened_classes": np.array([f"species {k}" for k in range(20)]),
        "softened_label": np.array(3),
        "softened_temperatures": np.array([1.0, 5.0]),
        "softened_teacher": np.full((2, 20), 0.05),
        "softened_student": np.full((2, 20), 0.05),
        "attention_images": (noise(4, 32, 32, 3) * 255).astype(np.uint8),
        "attention_classes": np.array(["a", "b", "c", "d"]),
        "attention_roles": ROLES,
        "attention_models": np.array(["resnet18", "resnet50", "resnet18"]),
        "attention_freezes": np.array(["none"] * 3),
        "attention_stages": np.array(["16", "32"]),
        "lr_steps": np.arange(40),
        "lr_rates": np.linspace(0.1, 0.0, 40),
        "lr_epochs": np.array(4),
        "lr_steps_per_epoch": np.array(10),
        "lr_warmup_steps": np.array(0),
        "mixed_images": (noise(25, 16, 16) * 255).astype(np.uint8),
        "mixed_shares": noise(25),
        "mixed_labels": np.arange(50).reshape(25, 2),
        **maps,
        **gradcam_arrays("none"),
        **gradcam_arrays("encoder_but_norm"),
    }


PICTURES = (
    "softened.png", "gradcam_none.png", "gradcam_encoder_but_norm.png", "attention.png", "lr_schedule.png",
    "mixed_images.png",
)  # fmt: skip


def reported(made: MadeUpStudy, arrays: dict[str, Any]) -> tuple[str, dict[str, bytes]]:
    """The report's text, and every picture in the folder."""
    np.savez(made.folder / "pictures.npz", **arrays)
    text = write_report(made.folder).read_text()
    return text, {path.name: path.read_bytes() for path in made.folder.glob("*.png")}


def test_every_picture_that_has_arrays_is_drawn_and_named_and_one_that_has_no_more_is_removed(made_up: Maker) -> None:
    made = made_up()
    text, files = reported(made, every_array())
    assert set(PICTURES) == files.keys()
    assert [text.index(f"]({name})") for name in PICTURES] == sorted(text.index(f"]({name})") for name in PICTURES)
    assert reported(made, every_array()) == (text, files), "equal arrays give equal bytes"
    text, files = reported(made, {})
    assert files == {}


def test_the_reason_of_a_picture_that_could_not_be_computed_is_kept() -> None:
    arrays = gradcam_arrays("none") | {"gradcam_encoder_reason": np.array("no libGL.so.1")}
    assert reasons(arrays) == [("Grad-CAM with `student.freeze: encoder`", "no libGL.so.1")]


def test_damaged_or_incomplete_arrays_cost_the_picture_and_not_the_report(made_up: Maker) -> None:
    made = made_up()
    text, files = reported(made, {"lr_steps": np.arange(4)})
    assert "There is no picture of `lr_schedule.png`: pictures.npz has no array 'lr_rates'" in text
    (made.folder / "pictures.npz").write_bytes(b"torn")
    assert "There is no picture of the networks: pictures.npz: cannot be read" in write_report(made.folder).read_text()
    assert files == {}


def texts(name: str, arrays: dict[str, Any]) -> str:
    """Return all text of a picture."""
    from matplotlib.text import Text

    with style.look():
        figure = drawings(arrays)[name]()
    assert figure is not None
    return "\n".join(text.get_text() for text in figure.findobj(Text))  # type: ignore[attr-defined]


def test_gradcam_shows_stage_freeze_and_whether_each_network_is_right() -> None:
    shown = texts("gradcam_encoder.png", gradcam_arrays("encoder"))
    assert "teacher\nresnet50\nstage 16, 2 x 2\nfreeze: none" in shown
    assert "student alone\nresnet18\nstage 16, 2 x 2\nfreeze: encoder" in shown
    assert shown.count("right") == 3
    assert shown.count("wrong: ants") == 9


def test_a_missing_student_alone_is_named_in_the_picture() -> None:
    shown = texts("gradcam_none.png", gradcam_arrays("none", networks=2))
    assert "(no student alone of this model completed all its seeds)" in shown


@pytest.mark.parametrize(
    ("warmup", "words"),
    [
        (15, "end of the warm-up: step 15, epoch 1.5"),
        (40, "the warm-up of 40 steps does not end"),
        (0, "Learning rate of the winner: 40 steps, 10 per epoch"),
    ],
)
def test_the_end_of_the_warm_up_is_marked_where_there_is_one(warmup: int, words: str) -> None:
    shown = texts("lr_schedule.png", every_array() | {"lr_warmup_steps": np.array(warmup)})
    assert words in shown
    assert ("warm-up" in shown) == (warmup > 0)


def test_each_mixed_image_has_both_shares_and_classes() -> None:
    arrays = every_array() | {"mixed_shares": np.full(25, 0.75, dtype=np.float32)}
    assert "0.75 of 48, 0.25 of 49" in texts("mixed_images.png", arrays)
