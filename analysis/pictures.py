"""All pictures of a report. Only this module and those that it imports need matplotlib."""

from collections.abc import Callable
from functools import partial

from matplotlib.figure import Figure

from analysis import bands, curves, fronts, gallery, plots, slices, style
from analysis.findings import Findings, Pictures
from analysis.frame import Study


def draw_all(study: Study, findings: Findings) -> Pictures:
    """Draw every picture for which there is data, and remove the others from the folder of the sweep."""
    drawn = set()
    reasons = [("the networks", findings.no_arrays)] if findings.no_arrays else gallery.reasons(findings.arrays)
    pictures = {**_pictures(study, findings), **gallery.drawings(findings.arrays)}
    with style.look():
        for name, draw in pictures.items():
            try:
                figure = draw()
            except KeyError as error:
                if name not in gallery.PICTURES:
                    raise
                figure = None  # arrays of an earlier version
                reasons.append((f"`{name}`", f"pictures.npz has no array {error}"))
            if figure is None:
                (study.folder / name).unlink(missing_ok=True)
            else:
                style.save(figure, study.folder / name)
                drawn.add(name)
    return Pictures(frozenset(drawn), frozenset(drawn & gallery.PICTURES.keys()), tuple(reasons))


def _pictures(study: Study, findings: Findings) -> dict[str, Callable[[], Figure | None]]:
    winner, baseline = findings.winner, findings.baseline
    teacher = findings.teachers[0] if findings.teachers else None
    of_reference = findings.reference.curves if findings.reference else []
    return {
        "history.png": lambda: plots.history(study),
        "slices.png": lambda: slices.slices(study),
        "importance.png": lambda: plots.importances(findings.branches),
        "front.png": lambda: fronts.pareto(findings.fronts, study),
        "sizes.png": lambda: plots.sizes(findings.models, study),
        "learning_curves.png": lambda: (
            curves.learning_curves(study, winner, baseline, teacher) if winner and baseline else None
        ),
        **{each.file: partial(bands.bands_and_zoom, study, each) for each in of_reference},
    }
