"""report.md: the primary claim first, then the results on which it rests; times and versions last."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis import accounts, results
from analysis.claims import Candidate, Single, candidates, find, teachers
from analysis.cost import cost
from analysis.frame import NOT_ENDED, Study, read_arrays, read_study, trials_csv
from analysis.headline import headline
from analysis.importance import Branch, branches
from analysis.references.sections import Section, reference_section
from analysis.rendering import render
from analysis.tables import one_line
from kdtrain.errors import UserError
from kdtrain.storage.folder import write_bytes

BEST_SHOWN = 10


@dataclass(frozen=True)
class Findings:
    """What the text and the pictures share; `arrays` of the pictures that need a network."""

    candidates: list[Candidate]
    winner: Candidate | None
    baseline: Candidate | None
    teachers: list[Single]
    branches: list[Branch]
    reference: Section | None
    arrays: dict[str, np.ndarray]
    no_arrays: str | None


@dataclass(frozen=True)
class Pictures:
    """File names of the pictures that were drawn; `of_networks`: those that need a network.

    reasons: for each picture that is absent, what it shows and the reason.
    """

    drawn: frozenset[str] = frozenset()
    of_networks: frozenset[str] = frozenset()
    reasons: tuple[tuple[str, str], ...] = ()


def write_report(sweep_folder: Path) -> Path:
    """Write report.md, its pictures and trials.csv from the stored results of a sweep.

    report.md is written last, so it names no picture that is not there yet. A picture that cannot be drawn is replaced
    by a sentence with the reason.

    Args:
        sweep_folder: The folder of the sweep, with study.json.

    Returns:
        The path of report.md.

    Raises:
        UserError: If the folder is not that of a sweep, or its files cannot be read.
    """
    study = read_study(sweep_folder)
    findings = find_all(study)
    pictures = draw(study, findings)
    write_bytes(sweep_folder / "trials.csv", trials_csv(study).encode())
    report = sweep_folder / "report.md"
    write_bytes(report, compose(study, findings, pictures).encode())
    return report


def find_all(study: Study) -> Findings:
    """Return everything that the text and the pictures share."""
    event = study.winner or {}
    confirmed, trained = candidates(study), teachers(study)
    winner = find(confirmed, event.get("candidate"))
    first_baseline = next((c for c in confirmed if c.role == "baseline"), None)
    arrays, no_arrays = _arrays(study)
    return Findings(
        candidates=confirmed,
        winner=winner,
        baseline=find(confirmed, event.get("baseline")) if winner else first_baseline,
        teachers=trained,
        branches=branches(study),
        reference=reference_section(study, confirmed, trained),
        arrays=arrays,
        no_arrays=no_arrays,
    )


def draw(study: Study, findings: Findings) -> Pictures:
    """Draw all pictures into the folder of the sweep, and remove pictures of an earlier report."""
    try:
        from analysis.pictures import draw_all  # matplotlib may be missing
    except ImportError as error:
        return Pictures(reasons=(("this study", f"a package cannot be imported ({error})"),))
    return Pictures(*draw_all(study, findings))


def compose(study: Study, findings: Findings, pictures: Pictures) -> str:
    """Return the text of report.md."""
    return render(
        "report.md.j2",
        study=study,
        pictures=pictures,
        headline=headline(study, findings.winner, findings.baseline, findings.teachers),
        confirmed=results.confirmed(study, findings.candidates),
        corrected=sum(candidate.p_holm is not None for candidate in findings.candidates),
        reference=findings.reference,
        best_trials=results.best_trials(study, BEST_SHOWN),
        most_trials=BEST_SHOWN,
        hyperparameters=[(branch, results.hyperparameters(branch)) for branch in findings.branches],
        trial_counts=accounts.trial_counts(study),
        reasons=accounts.reasons(study),
        equal_trials=accounts.equal_trials(study),
        continue_command=accounts.continue_command(study),
        cost=cost(study),
    )


def _arrays(study: Study) -> tuple[dict[str, np.ndarray], str | None]:
    """Return the arrays of the pictures that need a network, or the reason why there are none."""
    path = study.folder / "pictures.npz"
    try:
        if path.exists():
            return read_arrays(path), None
    except UserError as error:
        return {}, str(error).replace(str(path), path.name)
    jobs = study.stage("pictures")
    state = None if jobs.empty else jobs["state"].iloc[-1]
    if state is None:
        return {}, "the study has not computed its arrays"
    if state == NOT_ENDED:
        return {}, "the job that computes its arrays has not ended"
    if state == "failed":
        return {}, f"the job that computes its arrays failed ({one_line(jobs['reason'].iloc[-1])})"
    return {}, "pictures.npz is absent"
