"""The last stages: `confirm` trains what was selected with fresh seeds, the test split is read, pictures are computed.

Nothing is chosen here. The winner is fixed before the first confirming training.
"""

import importlib.util
from collections.abc import Generator, Sequence

from kdtrain.config.recipe import Recipe
from kdtrain.errors import NoResult
from kdtrain.storage.folder import sha256
from kdtrain.study.bookkeeping import Bookkeeping
from kdtrain.study.description import recipe_yaml
from kdtrain.study.jobs import Job, JobStream
from kdtrain.study.journal import StudyJournal
from kdtrain.study.select import Selection
from kdtrain.study.selection import (
    Candidate,
    SearchedTrial,
    compared_recipes,
    confirmed_candidates,
    mean_objectives,
)
from kdtrain.study.shares import goes_on
from kdtrain.trials.store import PICTURES, pictures_digest

FIRST_CONFIRMING_SEED = 1_000_000
"""Seeds of the search lie below it. Each study seed has 1,000 confirming seeds from it on, so no seed that has chosen
a recipe also confirms one."""
TESTED_TOGETHER = 4
"""Trainings whose test split one job reads: few, so that jobs share the work, but more than one, because a job on
several workers takes ten seconds to start."""
Runs = dict[str, list[Job]]
"""The confirming trainings by candidate, in the order of their seeds."""


def fix_winner(
    book: Bookkeeping, selection: Selection, searched: Sequence[SearchedTrial], alone: Sequence[SearchedTrial]
) -> list[Candidate]:
    """Return what is confirmed; note the winner and write best.yaml."""
    candidates = confirmed_candidates(
        selection.leaders,
        confirmed_published(book, searched),
        selection.baselines,
        alone,
        [parameter.name for parameter in book.baselines.sweep.parameters],
    )
    note_winner(book, candidates, selection.leaders[selection.winner])
    return candidates


def note_winner(book: Bookkeeping, candidates: Sequence[Candidate], won: SearchedTrial) -> None:
    """Note which of the candidates is the winner, before any is confirmed, and write best.yaml."""
    winner = next(each for each in candidates if each.trial == won and each.role != "baseline")
    recipe = book.sweep.recipe_for(winner.values, _seeds(book)[0])
    book.journal.note(
        "winner",
        candidate=winner.key,
        baseline=winner.baseline,
        trial_id=book.workspace.trial_id(recipe),
        confirmed=[each.key for each in candidates],
    )
    book.journal.files.write("best.yaml", recipe_yaml(recipe, book.sweep.name).encode())


def confirmed_published(book: Bookkeeping, searched: Sequence[SearchedTrial]) -> list[SearchedTrial]:
    """Return the searched trials of the published points that are confirmed."""
    published = len(book.sweep.published) if book.sweep.study.confirm.published else 0
    return [trial for trial in searched if trial.number < published]


def confirm(book: Bookkeeping, candidates: Sequence[Candidate]) -> Generator[Job | None, None, Runs]:
    """Train every candidate with every confirming seed, or with as many as a budget allows, at least one."""
    runs: Runs = {candidate.key: [] for candidate in candidates}
    jobs: list[Job] = []
    for seed in _seeds(book):  # the seeds outside, so that further seeds continue the jobs' numbers
        own: list[Job] = []
        for candidate in candidates:
            sweep = book.baselines.sweep if candidate.role == "baseline" else book.sweep
            recipe, details = sweep.recipe_for(candidate.values, seed), {**candidate.as_json(), "seed": seed}
            number = len(jobs) + len(own)
            own.append(book.job("confirm", number, recipe, candidate.values, final=True, details=details))
        if book.account is not None:
            planned = book.journal.plan("confirm", len(jobs)) is not None
            epochs = sum(job.recipe.epochs for job in own)
            if jobs and not (yield from goes_on(book, "confirm", len(jobs) // len(own), epochs, planned=planned)):
                break
            book.stage, book.stage_size = "confirm", len(jobs) + len(own)
            yield from book.hand_out(own)
        jobs += own
        for candidate, job in zip(candidates, own, strict=True):
            runs[candidate.key].append(job)
    yield from book.wait_for(jobs) if book.account is not None else book.run_stage(jobs)
    book.remark_on_chance("confirm", jobs)
    return runs


def read_test(book: Bookkeeping, teachers: Sequence[Job], runs: Runs) -> JobStream:
    """Read the test split once for each teacher and then, in parallel jobs, for each confirmed training.

    Raises:
        NoResult: A job broke.
    """
    parts = [_untested(book, teachers), _untested(book, [job for own in runs.values() for job in own])]
    jobs = [
        book.job("test", number, recipes[0], kind="test", trained=recipes)
        for number, recipes in enumerate(recipes for part in parts for recipes in part)
    ]
    first = len(parts[0])
    book.stage, book.stage_size = "test", len(jobs)
    for part in (jobs[:first], jobs[first:]):  # a student is compared with its teacher's test outputs
        yield from book.run(part)
        ends = [book.ends[job.key] for job in part if book.ends[job.key]["state"] == "broken"]
        if ends:
            raise NoResult(f"confirm: the test split was not read for all recipes: {book.summary(ends)}")
    book.journal.note_tested(len(next(iter(runs.values()))))


def draw_pictures(book: Bookkeeping, runs: Runs) -> JobStream:
    """Compute the winner's pictures, unless they show the same trainings with the same packages already.

    There are none if one of the winner's losses became non-finite.
    """
    means = mean_objectives({key: [book.ends[job.key]["value"] for job in own] for key, own in runs.items()})
    winner = book.journal.winner()
    if winner not in means:
        return
    recipes = {key: own[0].recipe for key, own in runs.items()}
    compared = compared_recipes(recipes, means, maximize=book.maximize)
    details = {
        "compared": [book.workspace.trial_id(recipe) for recipe in compared],
        "gradcam": importlib.util.find_spec("pytorch_grad_cam") is not None,
    }
    job = book.job("pictures", 0, recipes[winner], kind="pictures", trained=tuple(compared), details=details)
    if not (book.journal.has_completed(**job.about, **job.details) and _has_pictures(book.journal)):
        yield from book.run_stage([job])


def _has_pictures(journal: StudyJournal) -> bool:
    """Return True if pictures.npz is there and has not changed since it was written."""
    path, expected = journal.files.file(PICTURES), pictures_digest(journal.events())
    return path.exists() and expected in (None, sha256(path))


def _seeds(book: Bookkeeping) -> range:
    first = FIRST_CONFIRMING_SEED + 1_000 * book.sweep.study.seed
    return range(first, first + book.sweep.study.confirm.seeds)


def _untested(book: Bookkeeping, trainings: Sequence[Job]) -> list[tuple[Recipe, ...]]:
    """Return the recipes whose test split is to be read, in parts for one job each."""
    recipes = {job.trial_id: job.recipe for job in trainings if book.is_untested(job)}
    distinct = list(recipes.values())
    return [tuple(distinct[i : i + TESTED_TOGETHER]) for i in range(0, len(distinct), TESTED_TOGETHER)]
