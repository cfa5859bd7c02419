"""The pictures that pictures.npz holds arrays for: their names, captions and drawings, and why one could not be made.

N images, H x W pixels, P points.
"""

import textwrap
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from analysis import heatmaps, style
from analysis.tables import count

Arrays = Mapping[str, Any]
FREEZES = ("none", "encoder_but_norm", "encoder")
CLASSES_DRAWN = 10
GRID = 5
LETTERS = 20
"""Of a class's name below a bar."""


@dataclass(frozen=True)
class Picture:
    """There is one where pictures.npz has an array of the name `known`."""

    known: str
    caption: str
    draw: Callable[[Arrays], Figure]


def drawings(arrays: Arrays) -> dict[str, Callable[[], Figure | None]]:
    """Every picture by its file name; None where there are no arrays for it."""

    def drawn(picture: Picture) -> Figure | None:
        return picture.draw(arrays) if picture.known in arrays else None

    return {name: partial(drawn, picture) for name, picture in _pictures().items()}


def section(arrays: Arrays, drawn: Collection[str]) -> str:
    """The pictures whose file names are among `drawn`, and the reasons of those that could not be made."""
    lines = [f"![{picture.caption}]({name})\n" for name, picture in _pictures().items() if name in drawn]
    if "softened_reason" in arrays:
        lines.append(f"There is no picture of softened outputs: {arrays['softened_reason']}.\n")
    for freeze in FREEZES:
        reason = arrays.get(f"gradcam_{freeze}_reason")
        if reason is not None:
            lines.append(f"There is no Grad-CAM comparison with `student.freeze: {freeze}`: {reason}.\n")
    return "\n".join(["## The networks and their images\n", *lines]) if lines else ""


def _pictures() -> dict[str, Picture]:
    looks = {
        f"gradcam_{freeze}.png": Picture(
            f"gradcam_{freeze}_maps",
            f"Grad-CAM++ of the label's class on test images, student.freeze {freeze}: the distilled student that is "
            "best on validation, its teacher, the student alone",
            partial(heatmaps.gradcam, freeze=freeze),
        )
        for freeze in FREEZES
    }
    return {
        "softened.png": Picture(
            "softened_image",
            "Outputs of teacher and student at T = 1 and at the best T, "
            "for the validation image that the teacher gets right with the least probability",
            softened,
        ),
        **looks,
        "attention.png": Picture(
            "attention_images",
            "Attention maps on validation images, at the stages that the winner's method compares",
            heatmaps.attention,
        ),
        "lr_schedule.png": Picture("lr_steps", "Learning rate of the winner by update step", lr_schedule),
        "mixed_images.png": Picture(
            "mixed_images",
            "The first 25 training images of the winner's first epoch, as its networks get them",
            mixed_images,
        ),
    }


def softened(arrays: Arrays) -> Figure:
    """One image, and the answers of teacher and student at each temperature; of many classes the top."""
    teacher_MK, student_MK = np.asarray(arrays["softened_teacher"]), np.asarray(arrays["softened_student"])
    temperatures = np.asarray(arrays["softened_temperatures"])
    numbers = np.arange(teacher_MK.shape[1])  # where earlier results have no names
    names = [str(name).replace("_", " ") for name in arrays.get("softened_classes", numbers)]
    each = CLASSES_DRAWN if teacher_MK.shape[1] <= CLASSES_DRAWN else CLASSES_DRAWN // 2
    tops = [np.argsort(-answers_MK[0], kind="stable")[:each] for answers_MK in (teacher_MK, student_MK)]
    classes = np.union1d(*tops)
    shown = [names[k] if len(names[k]) <= LETTERS else f"{names[k][: LETTERS - 1]}…" for k in classes]
    rotated = {"rotation": 40, "ha": "right"} if max(map(len, shown)) > 2 else {}
    of_all = f" (the {each} likeliest of each network)" if len(classes) < teacher_MK.shape[1] else ""
    made = style.figure(2.5 + 3.4 * len(temperatures), 3.1 + (0.07 * max(map(len, shown)) if rotated else 0))
    ratios = [2.2, *[3.4] * len(temperatures)]
    picture, *panels = made.subplots(1, len(ratios), width_ratios=ratios)
    picture.imshow(arrays["softened_image"], cmap="gray", interpolation="nearest")
    picture.set_title(textwrap.fill(f"label: {names[int(arrays['softened_label'])]}", 22))
    picture.set_axis_off()
    for axes, temperature, teacher_K, student_K in zip(panels, temperatures, teacher_MK, student_MK, strict=True):
        at = np.arange(len(classes))
        axes.bar(at - 0.21, teacher_K[classes], width=0.4, color=style.BLUE, label="teacher")
        axes.bar(at + 0.21, student_K[classes], width=0.4, color=style.ORANGE, label="student distilled")
        axes.set_xticks(at, shown, **rotated)
        axes.set_ylim(0, 1.08 * max(teacher_K.max(), student_K.max()))
        axes.grid(visible=False, axis="x")
        axes.set(xlabel=f"class{of_all}", title=f"T = {temperature:.3g}")
    panels[0].set_ylabel("probability")
    made.legend(*panels[0].get_legend_handles_labels(), loc="outside lower right", ncols=2)
    return made


def lr_schedule(arrays: Arrays) -> Figure:
    """The learning rate of every step, and where the warm-up ends."""
    steps_P, rates_P = np.asarray(arrays["lr_steps"]), np.asarray(arrays["lr_rates"])
    per_epoch, warmup = int(arrays["lr_steps_per_epoch"]), int(arrays["lr_warmup_steps"])
    total = per_epoch * int(arrays["lr_epochs"])
    made = style.figure(7.2, 3.4)
    axes = made.subplots()
    # each step has one rate, the last one too
    axes.plot(
        [*steps_P, total], [*rates_P, rates_P[-1]], drawstyle="steps-post", color=style.BLUE, label="learning rate"
    )
    title = f"Learning rate of the winner: {count(total)} steps, {count(per_epoch)} an epoch"
    if warmup >= total:
        title += f"\nits warm-up of {count(warmup)} steps does not end"
    elif warmup:
        label = f"end of the warm-up: step {count(warmup)}, epoch {warmup / per_epoch:.3g}"
        axes.axvline(warmup, color=style.ORANGE, linestyle="--", label=label)
        made.legend(loc="outside lower center", ncols=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.05 * rates_P.max())
    axes.set(xlabel="update step", ylabel="learning rate", title=title)
    return made


def mixed_images(arrays: Arrays) -> Figure:
    """A grid of mixed images, each with its share l and the classes of image and partner."""
    shares_N, labels_N2 = np.asarray(arrays["mixed_shares"]), np.asarray(arrays["mixed_labels"])
    made = style.figure(7.0, 7.7)
    for axes in (panels := made.subplots(GRID, GRID).ravel()):
        axes.set_axis_off()
    shown = zip(panels, arrays["mixed_images"], shares_N, labels_N2, strict=False)  # a tiny set fills no grid
    for axes, image, share, (own, partner) in shown:
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        title = f"{share:.2f} of {own}, {1 - share:.2f} of {partner}"
        axes.set_title(title, fontsize=7.5, fontweight="normal", loc="center")
    made.suptitle(
        "Mixed images of the first epoch: l of an image's class, 1 - l of its partner's",
        x=0.01, ha="left", fontsize=10, fontweight="bold",
    )  # fmt: skip
    return made
