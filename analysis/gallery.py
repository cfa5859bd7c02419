"""The pictures whose arrays are in pictures.npz, because they need a network.

N images, M temperatures, K classes, P points.
"""

import textwrap
from collections.abc import Callable, Mapping
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
SMALLEST_MAP = 4
LETTERS = 20
"""The longest name of a class below a bar."""


def drawings(arrays: Arrays) -> dict[str, Callable[[], Figure | None]]:
    """Return what draws each picture, by file name; it returns None if there are no arrays for the picture."""
    left_out = {f"gradcam_{freeze}.png" for freeze in FREEZES if _small_maps(arrays, freeze)}
    return {
        name: partial(draw, arrays) if array in arrays and name not in left_out else lambda: None
        for name, (array, draw) in PICTURES.items()
    }


def reasons(arrays: Arrays) -> list[tuple[str, str]]:
    """Return (what, reason) for each picture that could not be computed."""
    absent = {"softened outputs": "softened_reason"}
    absent |= {f"Grad-CAM with `student.freeze: {freeze}`": f"gradcam_{freeze}_reason" for freeze in FREEZES}
    found = [(what, str(arrays[name])) for what, name in absent.items() if name in arrays]
    small = [(f"Grad-CAM with `student.freeze: {freeze}`", _small_maps(arrays, freeze)) for freeze in FREEZES]
    return found + [(what, reason) for what, reason in small if reason]


def _small_maps(arrays: Arrays, freeze: str) -> str | None:
    """Return the reason why maps of an earlier version are not drawn, or None: each must have 4 x 4 pixels or more."""
    sizes = np.asarray(arrays.get(f"gradcam_{freeze}_sizes", []))
    if not sizes.size or sizes.min() >= SMALLEST_MAP:
        return None
    least = sizes[sizes.min(axis=1).argmin()]
    fewest = f"{SMALLEST_MAP} x {SMALLEST_MAP}"
    return f"a map has {least[0]} x {least[1]} pixels, and one of fewer than {fewest} marks no place"


def softened(arrays: Arrays) -> Figure:
    """Draw one image and the outputs of teacher and student at each temperature; of many classes the likeliest."""
    teacher_MK, student_MK = np.asarray(arrays["softened_teacher"]), np.asarray(arrays["softened_student"])
    temperatures = np.asarray(arrays["softened_temperatures"])
    numbers = np.arange(teacher_MK.shape[1])  # results of earlier versions have no names
    names = [str(name).replace("_", " ") for name in arrays.get("softened_classes", numbers)]
    each = CLASSES_DRAWN if teacher_MK.shape[1] <= CLASSES_DRAWN else CLASSES_DRAWN // 2
    tops = [np.argsort(-outputs_MK[0], kind="stable")[:each] for outputs_MK in (teacher_MK, student_MK)]
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
    """Draw the learning rate of every step and the end of the warm-up."""
    steps_P, rates_P = np.asarray(arrays["lr_steps"]), np.asarray(arrays["lr_rates"])
    per_epoch, warmup = int(arrays["lr_steps_per_epoch"]), int(arrays["lr_warmup_steps"])
    total = per_epoch * int(arrays["lr_epochs"])
    made = style.figure(7.2, 3.4)
    axes = made.subplots()
    until = [*steps_P, total], [*rates_P, rates_P[-1]]  # a step lasts until the next one, the last step until the end
    axes.plot(*until, drawstyle="steps-post", color=style.BLUE, label="learning rate")
    title = f"Learning rate of the winner: {count(total)} steps, {count(per_epoch)} per epoch"
    if warmup >= total:
        title += f"\nthe warm-up of {count(warmup)} steps does not end"
    elif warmup:
        label = f"end of the warm-up: step {count(warmup)}, epoch {warmup / per_epoch:.3g}"
        axes.axvline(warmup, color=style.ORANGE, linestyle="--", label=label)
        made.legend(loc="outside lower center", ncols=2)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(0, 1.05 * rates_P.max())
    axes.set(xlabel="update step", ylabel="learning rate", title=title)
    return made


def mixed_images(arrays: Arrays) -> Figure:
    """Draw a grid of mixed images, each with its share l and the classes of image and partner."""
    shares_N, labels_N2 = np.asarray(arrays["mixed_shares"]), np.asarray(arrays["mixed_labels"])
    made = style.figure(7.0, 7.7)
    for axes in (panels := made.subplots(GRID, GRID).ravel()):
        axes.set_axis_off()
    shown = zip(panels, arrays["mixed_images"], shares_N, labels_N2, strict=False)
    for axes, image, share, (own, partner) in shown:  # a small data set does not fill the grid
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        one, other = ("no label" if label < 0 else label for label in (own, partner))  # the label may be hidden
        title = f"{share:.2f} of {one}, {1 - share:.2f} of {other}"
        axes.set_title(title, fontsize=7.5, fontweight="normal", loc="center")
    style.title(made, "Mixed images of the first epoch: l of an image's class, 1 - l of its partner's")
    return made


PICTURES: Mapping[str, tuple[str, Callable[[Arrays], Figure]]] = {
    "softened.png": ("softened_image", softened),
    **{f"gradcam_{kind}.png": (f"gradcam_{kind}_maps", partial(heatmaps.gradcam, freeze=kind)) for kind in FREEZES},
    "attention.png": ("attention_images", heatmaps.attention),
    "lr_schedule.png": ("lr_steps", lr_schedule),
    "mixed_images.png": ("mixed_images", mixed_images),
}
"""By file name: an array that is there if and only if the picture can be drawn, and what draws it."""
