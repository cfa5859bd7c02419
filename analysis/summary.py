"""The primary claim of each sweep in a results folder."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.accounts import stages_ended
from analysis.claims import BEAT, LOST, UNDECIDED, Candidate, Verdict, candidates, find, verdict
from analysis.frame import Study, read_study
from analysis.importance import Branch, branches
from analysis.statistics import Estimate, holm
from analysis.tables import one_line
from kdtrain.errors import UserError

UNFINISHED, UNREADABLE = "unfinished", "cannot be read"
VERDICTS = (BEAT, LOST, UNDECIDED, UNFINISHED, UNREADABLE)


@dataclass(frozen=True)
class Summary:
    """The primary claim of one sweep; the name of its verdict is one of VERDICTS.

    name: of the folder. difference: test accuracy, winner minus the student alone, paired by seed; p, p_holm: of
    finished sweeps only. study is None if and only if the folder cannot be read: `problems` has the errors with their
    paths, the verdict's reason has them without the path of the results folder.
    """

    name: str
    verdict: Verdict
    study: Study | None = None
    winner: Candidate | None = None
    branches: Sequence[Branch] = ()
    difference: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None
    problems: tuple[str, ...] = ()

    @property
    def decided(self) -> bool:
        return self.verdict.name in (BEAT, LOST)


def sweep_folders(results: Path) -> list[Path]:
    """Return the folders of sweeps, by name; one with a record but without study.json is damaged."""
    return sorted({path.parent for file in ("study.json", "record.jsonl") for path in results.glob(f"*/{file}")})


def summaries(folders: Sequence[Path]) -> list[Summary]:
    """Return the claims in the order of the folders; p is corrected by Holm's method over the finished sweeps."""
    found = [_summary(folder) for folder in folders]
    corrected = holm([summary.p for summary in found])
    return [replace(summary, p_holm=p) for summary, p in zip(found, corrected, strict=True)]


def method_of(study: Study, trial_id: str | None) -> str | None:
    """Return the name of a trial's method, or None before the trial has begun."""
    recipe = study.recipes.get(trial_id or "", {}).get("recipe", {})
    name = recipe.get("method", {}).get("name")
    return None if name is None else str(name)


def _summary(folder: Path) -> Summary:
    try:
        return _of_study(folder.name, read_study(folder))
    except UserError as error:
        problems = tuple(error.problems)
    except OSError as error:
        problems = (f"{error.filename or folder}: {error.strerror or error}",)
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # valid JSON in another form
        what = f"{folder}: is damaged ({type(error).__name__}: {error})"
        problems = (f"{what}; `kdtrain report` on this folder shows where",)
    # the reason does not depend on the path of the results folder
    reason = "; ".join(problems).replace(str(folder.parent / "trials"), "trials").replace(str(folder), folder.name)
    return Summary(folder.name, Verdict(UNREADABLE, reason), problems=problems)


def _of_study(name: str, study: Study) -> Summary:
    winner = find(candidates(study), (study.winner or {}).get("candidate"))
    difference = winner.difference if winner else None
    if study.finished:
        decision, p = verdict(difference), winner.p if winner else None
    else:
        reason = one_line(study.no_result) if study.no_result else stages_ended(study)
        decision, p = Verdict(UNFINISHED, reason), None
    return Summary(name, decision, study, winner, branches(study, resamples=0), difference, p)
