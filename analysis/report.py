"""report.md: the answer first and how sure it is, then everything it rests on, times and versions last."""

from collections.abc import Callable, Collection
from pathlib import Path

from matplotlib.figure import Figure

from analysis import accounts, curves, gallery, headline, plots, results, slices, style
from analysis.claims import Candidate, Single, candidates, find, teachers
from analysis.documents.document import Figures, Rows
from analysis.documents.measured import measured_rows
from analysis.documents.registry import DOCUMENTS, document_section
from analysis.frame import Study, read_arrays, read_study, trials_csv
from analysis.importance import Branch, branches
from kdtrain.storage.folder import write_bytes

Pictures = dict[str, Callable[[], Figure | None]]


def write_report(sweep_folder: Path) -> Path:
    """report.md is written last, so that it never names a picture that is not there yet."""
    study = read_study(sweep_folder)
    findings = Findings(study)
    drawn = _draw(sweep_folder, _pictures(study, findings))
    write_bytes(sweep_folder / "trials.csv", trials_csv(study).encode())
    report = sweep_folder / "report.md"
    write_bytes(report, compose(study, findings, drawn).encode())
    return report


class Findings:
    """What the sections and the pictures share, computed once."""

    def __init__(self, study: Study) -> None:
        event = study.winner or {}
        self.candidates: list[Candidate] = candidates(study)
        self.winner = find(self.candidates, event.get("candidate"))
        first_baseline = next((c for c in self.candidates if c.role == "baseline"), None)
        self.baseline = find(self.candidates, event.get("baseline")) if self.winner else first_baseline
        self.teachers: list[Single] = teachers(study)
        self.branches: list[Branch] = branches(study)
        self.arrays = read_arrays(study.folder / "pictures.npz")
        self.document = DOCUMENTS.get(study.published or "")
        self.rows: Rows = measured_rows(study, self.candidates, self.teachers) if self.document else []
        self.figures: Figures = self.document.pictures(study, self.rows) if self.document else {}


def compose(study: Study, findings: Findings, pictures: Collection[str]) -> str:
    """The whole text; a picture is shown if its file name is among `pictures`."""

    def picture(name: str, caption: str) -> str:
        return f"![{caption}]({name})\n" if name in pictures else ""

    sections = [
        headline.answer_section(study, findings.winner, findings.baseline, findings.teachers),
        headline.setup_section(study, findings.winner, findings.baseline, findings.teachers),
        results.candidates_section(study, findings.candidates),
        document_section(findings.document, findings.rows) if findings.document else "",
        *(picture(name, caption) for name, (caption, _) in findings.figures.items()),
        results.search_section(study),
        results.importance_section(findings.branches),
        picture("importance.png", "Importance of each hyperparameter, per branch"),
        picture("slices.png", "The objective by each hyperparameter"),
        "## How it went\n" if pictures else "",
        picture("history.png", "Optimisation history"),
        picture("learning_curves.png", "Learning curves of the winner and of its baseline"),
        gallery.section(findings.arrays, pictures),
        accounts.counts_section(study),
        accounts.idle_knobs_section(study),
        accounts.commands_section(study, has_winner=findings.winner is not None),
        accounts.cost_section(study),
    ]
    return "\n".join(section for section in sections if section)


def _pictures(study: Study, findings: Findings) -> Pictures:
    winner, baseline = findings.winner, findings.baseline
    teacher = findings.teachers[0] if findings.teachers else None
    return {
        "history.png": lambda: plots.history(study),
        "slices.png": lambda: slices.slices(study),
        "importance.png": lambda: plots.importances(findings.branches),
        "learning_curves.png": lambda: (
            curves.learning_curves(study, winner, baseline, teacher) if winner and baseline else None
        ),
        **{name: draw for name, (_, draw) in findings.figures.items()},
        **gallery.drawings(findings.arrays),
    }


def _draw(folder: Path, pictures: Pictures) -> set[str]:
    """Names of the pictures that there are now; an earlier report's that is no longer drawn is removed."""
    drawn = set()
    with style.look():
        for name, draw in pictures.items():
            figure = draw()
            if figure is None:
                (folder / name).unlink(missing_ok=True)
            else:
                style.save(figure, folder / name)
                drawn.add(name)
    return drawn
