"""The stages `baselines` and `search`: the trials of a search, batch by batch."""

from collections.abc import Generator, Sequence

from kdtrain.config.parameter import Values
from kdtrain.config.search_checks import longest_training
from kdtrain.errors import NoResult, UserError
from kdtrain.storage.folder import Row
from kdtrain.study.bookkeeping import Bookkeeping
from kdtrain.study.jobs import Job, TrainingStream
from kdtrain.study.search import Search
from kdtrain.study.selection import SearchedTrial
from kdtrain.study.shares import goes_on
from kdtrain.trials.records import JobEnd


def run_search(book: Bookkeeping, search: Search) -> Generator[Job | None, None, list[SearchedTrial]]:
    """Run a search's trials batch by batch, each suggested when the batch before it has ended (or one by one)."""
    searched: list[Job] = []
    number = 0
    while number < search.trials:
        searched += yield from _run_batch(book, search, number)
        number = search.batch_of(number).stop
    return (yield from _end_search(book, search, searched))


def run_in_turn(book: Bookkeeping) -> Generator[Job | None, None, tuple[list[SearchedTrial], list[SearchedTrial]]]:
    """Run a batch of the baselines, one of the search, and so on, until the searches' share of the budget has ended.

    Return the trials of the baselines and of the search. Both get equal numbers, unless the space of the baselines is
    smaller.
    """
    searches = (book.baselines, book.search)
    searched: dict[str, list[Job]] = {search.stage: [] for search in searches}
    longest, number = longest_training(book.sweep.tree), 0
    while unfinished := [search for search in searches if number < search.trials]:
        batches = [(search.stage, other) for search in unfinished for other in search.batch_of(number)]
        planned = any(book.journal.plan(stage, other) is not None for stage, other in batches)
        if not (yield from goes_on(book, "search", number, len(batches) * longest, planned=planned)):
            for search in unfinished:
                search.stopped_at = number
            break
        for search in unfinished:
            searched[search.stage] += yield from _run_batch(book, search, number)
        number = max(search.batch_of(number).stop for search in unfinished)
    if number == 0:
        raise NoResult("baselines: the share of study.budget has ended before the first batch; write a larger one")
    alone = yield from _end_search(book, book.baselines, searched["baselines"])
    return alone, (yield from _end_search(book, book.search, searched["search"]))


def _run_batch(book: Bookkeeping, search: Search, number: int) -> TrainingStream:
    """Run the batch that begins with a trial, and return its jobs; in free order they may still run."""
    batch = search.batch_of(number)
    is_open = book.sweep.study.trials is None and search.trials > batch.stop  # only a budget ends it
    book.stage, book.stage_size = search.stage, batch.stop if is_open else search.trials
    jobs = [job for number in batch if (job := _planned_job(book, search, number)) is not None]
    if book.sweep.study.order == "batches":
        yield from book.run(jobs)
    else:
        yield from book.to_do_again()
        yield from book.hand_out(jobs)
    return jobs


def _end_search(
    book: Bookkeeping, search: Search, searched: Sequence[Job]
) -> Generator[Job | None, None, list[SearchedTrial]]:
    """Wait for the trials of a search, and return them."""
    while book.runs(search.stage):
        yield from book.to_do_again() or [None]
    ends = [book.ends[f"{search.stage}-{number}"] for number in range(search.trials)]
    if not any(end["state"] == "complete" for end in ends):
        raise NoResult(f"{search.stage}: none of {search.trials} trials completed: {book.summary(ends)}")
    book.remark_on_chance(search.stage, searched)
    return [_searched_trial(book, search, job) for job in searched]


def _planned_job(book: Bookkeeping, search: Search, number: int) -> Job | None:
    """Return the job of a trial, with the values of an earlier start or new ones; None if they do not go together:
    the trial has then failed for that reason."""
    earlier = _earlier_values(book, search, number)
    values = earlier or search.suggest(number)
    plan = book.journal.plan(search.stage, number) if earlier else None
    search.plan(number, values, plan.get("attributes") if plan else None)
    kept = search.sampler_attributes(number)
    details: Row = {"attributes": kept} if kept else {}
    if search.costs is not None:
        details["cost"] = search.costs.of(values)
    published = number < len(search.sweep.published)
    try:
        recipe = search.recipe(number)
    except UserError as error:
        about = {"stage": search.stage, "number": number, "trial_id": None}
        end: JobEnd = {"state": "failed", "value": None, "reason": str(error), "epochs": 0}
        book.journal.note("planned", **about, values=values, published=False, **details)
        book.journal.note("ended", **about, **end)
        book.ends[f"{search.stage}-{number}"] = end
        search.tell(number, "failed", None, [])
        return None
    prunable = not published and book.sweep.study.pruner.name != "none"
    return book.job(search.stage, number, recipe, values, published=published, prunable=prunable, details=details)


def _earlier_values(book: Bookkeeping, search: Search, number: int) -> Values | None:
    """Return the values that a trial was planned with at an earlier start, or None.

    None also if they make another trial now, because code, images or weights have changed since: the sampler chose
    them by results that this search does not have.
    """
    plan = book.journal.plan(search.stage, number)
    if plan is None or plan["trial_id"] is None:
        return plan and plan["values"]
    recipe = search.sweep.recipe_for(plan["values"], book.sweep.study.seed)
    return plan["values"] if book.workspace.trial_id(recipe) == plan["trial_id"] else None


def _searched_trial(book: Bookkeeping, search: Search, job: Job) -> SearchedTrial:
    values = job.details["values"]
    option = search.sweep.option(values)
    key = book.ranking_key(job)
    return SearchedTrial(job.stage, job.number, job.trial_id, values, job.recipe.student, key, option)
