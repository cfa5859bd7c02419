"""What the text and the pictures of a report share."""

from dataclasses import dataclass

import numpy as np

from analysis.claims import Candidate, Pair, Single, comparisons, find, teachers
from analysis.frame import BROKEN, NOT_ENDED, Study
from analysis.importance import Branch, branches
from analysis.references.sections import Section, reference_section
from analysis.student_models import Model, student_models
from analysis.tables import one_line
from analysis.tradeoff import Front, fronts
from kdtrain.errors import UserError


@dataclass(frozen=True)
class Findings:
    """The results of a study. arrays: of the pictures that need a network; no_arrays: the reason if there are none.

    models: the student models, if several are searched; fronts: those of a trade-off.
    """

    candidates: list[Candidate]
    pairs: list[Pair]
    winner: Candidate | None
    baseline: Candidate | None
    teachers: list[Single]
    branches: list[Branch]
    models: list[Model]
    fronts: list[Front]
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


def find_all(study: Study) -> Findings:
    """Compute the findings of a study."""
    event = study.winner or {}
    compared, trained = comparisons(study), teachers(study)
    confirmed = compared.candidates
    winner = find(confirmed, event.get("candidate"))
    first_baseline = next((c for c in confirmed if c.role == "baseline"), None)
    arrays, no_arrays = _arrays(study)
    return Findings(
        candidates=confirmed,
        pairs=compared.pairs,
        winner=winner,
        baseline=find(confirmed, event.get("baseline")) if winner else first_baseline,
        teachers=trained,
        branches=branches(study),
        models=student_models(study, confirmed),
        fronts=fronts(study, confirmed),
        reference=reference_section(study, confirmed, trained),
        arrays=arrays,
        no_arrays=no_arrays,
    )


def _arrays(study: Study) -> tuple[dict[str, np.ndarray], str | None]:
    """Return the arrays of the pictures that need a network, or the reason why there are none."""
    path = study.folder / "pictures.npz"
    try:
        if path.exists():
            return study.pictures(), None
    except UserError as error:
        return {}, str(error).replace(str(path), path.name)
    jobs = study.stage("pictures")
    state = None if jobs.empty else jobs["state"].iloc[-1]
    if state == BROKEN:
        return {}, f"the job that computes its arrays broke ({one_line(jobs['reason'].iloc[-1])})"
    known = {
        None: "the study has not computed its arrays", NOT_ENDED: "the job that computes its arrays has not ended",
    }  # fmt: skip
    return {}, known.get(state, "pictures.npz is absent")
