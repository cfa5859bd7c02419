"""The end of a stage whose share of `study.budget` is spent: no further batch, round or seed starts."""

from collections.abc import Generator

from kdtrain.study.bookkeeping import Bookkeeping
from kdtrain.study.budget import STAGES
from kdtrain.study.jobs import Job

COUNTED = {"search": "trials of each search", "select": "rounds", "confirm": "seeds"}


def goes_on(
    book: Bookkeeping, stage: str, number: int, epochs: int, *, planned: bool
) -> Generator[Job | None, None, bool]:
    """Return True if the next batch, round or seed of a stage may start; if not, note it in the journal.

    Trainings that still run count with all their epochs, so it waits for them before it gives up. A budget of
    time repeats what was decided at an earlier start, because times are never the same.

    Args:
        book: The study's bookkeeping.
        stage: "search" for both searches, "select" or "confirm".
        number: The trials of each search, the rounds or the seeds so far.
        epochs: The upper bound of the epochs of what would start.
        planned: True if an earlier start has begun it.
    """
    account = book.account
    if account is None:
        return True
    if not account.repeatable:
        known = book.journal.budget_end(stage)
        if planned or (known is not None and known["number"] <= number):
            return planned
    while not account.fits(stage, epochs) and book.runs(*STAGES):
        yield from book.to_do_again() or [None]
    if account.fits(stage, epochs):
        return True
    end = account.share_end(stage)
    book.journal.note("budget_end", stage=stage, number=number, spent=account.spent, share_end=end)
    book.remarks.append(
        f"study.budget: {stage} ends after {number} {COUNTED[stage]}, with {account.text} spent; its share ends at"
        f" {end:.4g}, and to go on could take {epochs} epochs"
    )
    return False
