"""Each sweep of a results folder in one row: what was compared, by how much it differs, what may be said of it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.accounts import stages_ended
from analysis.claims import Candidate, candidates, find, verdict
from analysis.frame import Study, read_study
from analysis.importance import Branch, branches
from analysis.statistics import Estimate, holm
from kdtrain.errors import UserError

BEAT, LOST, UNDECIDED, UNFINISHED, UNREADABLE = "beat", "lost to", "undecided", "unfinished", "cannot be read"


@dataclass(frozen=True)
class Summary:
    """One sweep's primary claim. verdict: one of the five words above, with the reason of what is not decided.

    name: its folder's. difference: test accuracy, winner minus the student alone, paired by seed; p, p_holm: of
    finished sweeps only. study is None where the folder cannot be read, and only there: what there is to mend is in
    problems, with its path, and in the reason, without the path of the results.
    """

    name: str
    verdict: str
    reason: str = ""
    study: Study | None = None
    winner: Candidate | None = None
    branches: Sequence[Branch] = ()
    difference: Estimate | None = None
    p: float | None = None
    p_holm: float | None = None
    problems: tuple[str, ...] = ()

    @property
    def decided(self) -> bool:
        return self.verdict in (BEAT, LOST)

    @property
    def said(self) -> str:
        return f"{self.verdict}: {self.reason}" if self.reason else self.verdict


def sweep_folders(results: Path) -> list[Path]:
    """Sorted by name. What has a record but no study.json was a sweep, and is damaged."""
    return sorted({path.parent for file in ("study.json", "record.jsonl") for path in results.glob(f"*/{file}")})


def summaries(folders: Sequence[Path]) -> list[Summary]:
    """In the order of the folders; p corrected by Holm's method over the finished sweeps, a claim each."""
    found = [_summary(folder) for folder in folders]
    corrected = holm([summary.p for summary in found])
    return [replace(summary, p_holm=p) for summary, p in zip(found, corrected, strict=True)]


def method_of(study: Study, trial_id: str | None) -> str | None:
    """The name of a trial's method; None of a trial that has not begun."""
    recipe = study.recipes.get(trial_id or "", {}).get("recipe", {})
    name = recipe.get("method", {}).get("name")
    return None if name is None else str(name)


def _summary(folder: Path) -> Summary:
    try:
        return _of_study(folder.name, read_study(folder))
    except UserError as error:
        return _unreadable(folder, *error.problems)
    except OSError as error:
        return _unreadable(folder, f"{error.filename or folder}: {error.strerror or error}")
    except (LookupError, TypeError, ValueError, AttributeError) as error:  # JSON, but not of the form that we write
        return _unreadable(
            folder,
            f"{folder}: is damaged ({type(error).__name__}: {error}); python -m analysis of its folder shows where",
        )


def _unreadable(folder: Path, *problems: str) -> Summary:
    """The same store gives the same reason, wherever it lies."""
    reason = "; ".join(problems).replace(str(folder.parent / "trials"), "trials").replace(str(folder), folder.name)
    return Summary(folder.name, UNREADABLE, reason, problems=problems)


def _of_study(name: str, study: Study) -> Summary:
    winner = find(candidates(study), (study.winner or {}).get("candidate"))
    difference = winner.difference if winner else None
    decision, _, reason = verdict(difference).partition(": ")
    p = winner.p if winner else None
    if not study.finished:
        decision, reason, p = UNFINISHED, stages_ended(study), None
    return Summary(name, decision, reason, study, winner, branches(study), difference, p)
