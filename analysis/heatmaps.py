"""Images beside heat maps of several networks: Grad-CAM++ and attention maps."""

import textwrap
from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import style

ROLES = {"distilled": "student distilled", "teacher": "teacher", "alone": "student alone"}
HEAT = "viridis"
CELL_INCH = 1.6


def gradcam(arrays: Mapping[str, Any], freeze: str) -> Figure:
    """Draw one row per image: the image, and Grad-CAM++ of its label over it for each network."""
    part = {name: arrays[f"gradcam_{freeze}_{name}"] for name in GRADCAM_PARTS}
    described = zip(*(part[name] for name in ("roles", "models", "freezes", "stages", "sizes")), strict=True)
    heads = ["original"]
    for role, model, own, stage, size in described:
        heads.append(_head(role, model, stage, size) + f"\nfreeze: {own}")
    made, panels = _grid(len(part["images"]), heads)
    for row, (image, axes) in enumerate(zip(part["images"], panels, strict=True)):
        _image(axes[0], image, str(part["classes"][row]))
        for network, panel in enumerate(axes[1:]):
            named = part["named"][network, row]
            _image(panel, image, "right" if part["right"][network, row] else f"wrong: {named}")
            heat = panel.imshow(part["maps"][network, row], cmap=HEAT, vmin=0, vmax=1, alpha=0.6)
    bar = made.colorbar(heat, ax=panels, shrink=0.5, ticks=[0, 1], label="Grad-CAM++, each map by itself")
    bar.ax.set_yticklabels(["least", "most"])
    _title(made, f"Grad-CAM++ of the label's class; student.freeze: {freeze}", part["roles"])
    return made


GRADCAM_PARTS = ("images", "classes", "roles", "models", "freezes", "stages", "sizes", "named", "right", "maps")


def attention(arrays: Mapping[str, Any]) -> Figure:
    """Draw one row per image: the image, and q(F) of each network and stage, scaled by image and stage."""
    roles = list(arrays["attention_roles"])
    models = dict(zip(roles, arrays["attention_models"], strict=True))
    stages = list(arrays["attention_stages"])
    columns = [(stage, role) for stage in stages for role in ("teacher", "distilled", "alone") if role in roles]
    maps = {column: arrays["attention_maps_{}_{}".format(*column)] for column in columns}
    heads = [_head(role, models[role], stage, maps[stage, role].shape[1:]) for stage, role in columns]
    made, panels = _grid(len(arrays["attention_images"]), ["original", *heads])
    for row, (image, axes) in enumerate(zip(arrays["attention_images"], panels, strict=True)):
        _image(axes[0], image, str(arrays["attention_classes"][row]))
        for panel, (stage, role) in zip(axes[1:], columns, strict=True):
            most = max(maps[column][row].max() for column in columns if column[0] == stage)
            panel.imshow(maps[stage, role][row], cmap=HEAT, vmin=0, vmax=most, interpolation="nearest")
    _title(made, "Attention maps q(F); dark: 0, yellow: maximum over the networks for an image and a stage", roles)
    return made


def _head(role: str, model: str, stage: str, size: Any) -> str:
    high, wide = size
    return "\n".join([ROLES[role], *textwrap.wrap(model, 26), f"stage {stage}, {high} x {wide}"])


def _grid(rows: int, heads: list[str]) -> tuple[Figure, Any]:
    """Return empty axes below the heads of their columns."""
    made = style.figure(CELL_INCH * len(heads) + 0.8, (CELL_INCH + 0.12) * rows + 1.1)
    panels = made.subplots(rows, len(heads), squeeze=False)
    for axes in panels.ravel():
        axes.set(xticks=[], yticks=[])
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
    for axes, head in zip(panels[0], heads, strict=True):
        axes.set_title(head, fontsize=7.5, fontweight="normal", loc="center")
    return made, panels


def _image(axes: Axes, image: Any, below: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xlabel("\n".join(textwrap.wrap(below.replace("_", " "), 24)), fontsize=7.5)


def _title(made: Figure, title: str, roles: Any) -> None:
    if "teacher" not in roles:
        title += "\n(the teacher is an ensemble of networks, which has no map of its own)"
    if "alone" not in roles:
        title += "\n(no student alone of this model completed all its seeds)"
    style.title(made, title)
