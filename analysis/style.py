"""The style of all pictures, safe for the colour-blind (Okabe and Ito 2008); equal data gives equal bytes."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdtrain.storage.folder import write_bytes

BLUE, ORANGE, GREEN, PINK, SKY, VERMILION, YELLOW = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442",
)  # fmt: skip
GREY, INK = "#8A8A8A", "#222222"
SERIES = (BLUE, ORANGE, GREEN, PINK, SKY, VERMILION)

LOOK: dict[Any, Any] = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.labelsize": 9, "axes.labelcolor": INK, "text.color": INK,
    "axes.edgecolor": "#666666", "axes.linewidth": 0.8, "axes.spines.top": False, "axes.spines.right": False,
    "axes.axisbelow": True, "axes.grid": True, "grid.color": "#E4E4E4", "grid.linewidth": 0.7,
    "xtick.color": "#444444", "ytick.color": "#444444", "xtick.labelsize": 8, "ytick.labelsize": 8,
    "legend.frameon": False, "legend.fontsize": 8, "lines.linewidth": 1.8, "lines.markersize": 5,
    "figure.facecolor": "white", "savefig.facecolor": "white", "axes.formatter.useoffset": False,
}  # fmt: skip


@contextmanager
def look() -> Iterator[None]:
    """Apply the style of reports, independent of the user's matplotlibrc, and restore the settings afterwards."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(LOOK)
        yield


def figure(width: float, height: float) -> Figure:
    """Return an empty figure, sizes in inches, without pyplot: no window and no global state."""
    made = Figure(figsize=(width, height), dpi=150, layout="constrained")
    FigureCanvasAgg(made)
    return made


def title(made: Figure, text: str) -> None:
    """Write the title of a figure of several panels."""
    made.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold")


def save(made: Figure, path: Path) -> None:
    """Write a PNG file atomically, without the version of matplotlib, so that equal data gives an equal file."""
    buffer = io.BytesIO()
    made.savefig(buffer, format="png", metadata={"Software": None})
    write_bytes(path, buffer.getvalue())
