"""The stage `select`: the promising recipes of the search, and those of the baselines, race over fresh seeds."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, replace

from kdtrain.config.space import student_models
from kdtrain.config.sweep import Sweep
from kdtrain.errors import NoResult
from kdtrain.study.bookkeeping import Bookkeeping
from kdtrain.study.jobs import Job
from kdtrain.study.race import LIKELY, Entrant, Race
from kdtrain.study.selection import SearchedTrial, race_trainings, racing_trials, ranked
from kdtrain.study.shares import goes_on

FIRST_RACING_SEED = 2_000_000_000
MOST_ROUNDS = 1_000
"""Each study seed has so many racing seeds from the first one on, which are no seeds of a search or confirming ones."""


@dataclass(frozen=True)
class Selection:
    """What the races have chosen: the best trial of each option ("" without options), the winner's option, and the
    winning baseline of each student model."""

    leaders: Mapping[str, SearchedTrial]
    winner: str
    baselines: Mapping[str, SearchedTrial]


def select(
    book: Bookkeeping, searched: Sequence[SearchedTrial], alone: Sequence[SearchedTrial]
) -> Generator[Job | None, None, Selection]:
    """Let the candidates of both searches race, round by round, and return what they have chosen.

    Raises:
        NoResult: A racing training broke, or every candidate's loss became non-finite.
    """
    race = _race(book, "search", searched, book.search.sweep)
    models = student_models(book.sweep.tree)
    alone_by_model = [replace(trial, option=trial.student.model) for trial in alone]
    whole = _race(book, "baselines", alone_by_model, book.baselines.sweep)
    # of several models each has two candidates at least, which can be more than those of the search
    most = max(len(race.entrants), len(whole.entrants) if len(models) > 1 else 0)
    race.trainings = whole.trainings = race_trainings(book.sweep.study.select.trainings, book.search.trials, most)
    baseline_races = _baseline_races(whole, alone, models)
    races = [race, *baseline_races.values()]
    number = round_number = 0
    while round_number < MOST_ROUNDS and any(entrants := [each.next_round() for each in races]):
        first = number
        seed = FIRST_RACING_SEED + MOST_ROUNDS * book.sweep.study.seed + round_number
        jobs: list[list[Job]] = []
        for each, racing in zip(races, entrants, strict=True):
            jobs.append([_job(book, each, entrant, number + i, seed) for i, entrant in enumerate(racing)])
            number += len(racing)
        epochs = sum(job.recipe.epochs for own in jobs for job in own)
        planned = book.journal.plan("select", first) is not None
        if not (yield from goes_on(book, "select", round_number, epochs, planned=planned)):
            break
        round_number += 1
        book.stage, book.stage_size = "select", number  # of all rounds so far
        yield from book.run([job for own in jobs for job in own])
        for each, racing, own in zip(races, entrants, jobs, strict=True):
            if own:
                _end_round(book, each, racing, own, seed)
    won, *winners = (_end_race(book, each) for each in races)
    trials = {trial.key: trial for trial in (*searched, *alone)}
    option = next(option for option, key in race.leaders().items() if key == won)
    return Selection(
        {option: trials[key] for option, key in race.leaders().items()},
        option,
        {model: trials[key] for model, key in zip(baseline_races, winners, strict=True) if key is not None},
    )


def _race(book: Bookkeeping, name: str, trials: Sequence[SearchedTrial], sweep: Sweep) -> Race:
    """Return the race of a search's trials, which has no trainings yet."""
    distinct = ranked(trials)
    racing = racing_trials(distinct, book.sweep.study.select.candidates, len(sweep.published))
    return Race(
        name,
        [Entrant(trial.key, trial.option, trial) for trial in racing],
        {trial.key: trial.ranking_key for trial in distinct if trial.ranking_key is not None},
        book.sweep.study.seed,
        0,
        book.maximize,
    )


def _baseline_races(whole: Race, alone: Sequence[SearchedTrial], reachable: Sequence[str]) -> dict[str, Race]:
    """Return a race for each student model; they share the trainings equally.

    They are named by the models that are `reachable`, because further trials can bring another model.
    """
    models = list(dict.fromkeys(entrant.trial.student.model for entrant in whole.entrants))
    races = {}
    for model in models:
        searched = {trial.key for trial in alone if trial.student.model == model}
        own = [replace(entrant, option=None) for entrant in whole.entrants if entrant.option == model]
        races[model] = replace(
            whole,
            name="baselines" if len(reachable) == 1 else f"baselines {model}",
            entrants=own,
            searched={key: value for key, value in whole.searched.items() if key in searched},
            trainings=whole.trainings // len(models),
            dropped={},
            improbable=set(),
            diverged=set(),
            _fresh={},
        )
    return races


def _job(book: Bookkeeping, race: Race, entrant: Entrant, number: int, seed: int) -> Job:
    trial = entrant.trial
    sweep = book.baselines.sweep if trial.stage == "baselines" else book.sweep
    details = {
        "candidate": entrant.key,
        "role": "candidate",
        "source": {"stage": trial.stage, "number": trial.number},
        "seed": seed,
        "race": race.name,
        "round": race.round + 1,
    }
    return book.job("select", number, sweep.recipe_for(trial.values, seed), trial.values, details=details)


def _end_round(book: Bookkeeping, race: Race, entrants: Sequence[Entrant], jobs: Sequence[Job], seed: int) -> None:
    ends = [book.ends[job.key] for job in jobs]
    if any(end["state"] == "broken" for end in ends):
        raise NoResult(f"select: a round cannot be decided without all its trainings: {book.summary(ends)}")
    reached = {entrant.key: book.ranking_key(job) for entrant, job in zip(entrants, jobs, strict=True)}
    race.end_round(seed, reached)
    racers, posterior = race.standing()
    book.journal.note(
        "round",
        race=race.name,
        round=race.round,
        racers=racers,
        between_sd=posterior.between_sd,
        residual_sd=posterior.residual_sd,
        spent=race.spent,
        trainings=race.trainings,
    )
    left = sum(entrant.key not in race.dropped for entrant in race.entrants)
    leaders = ", ".join(race.leaders().values()) or "nobody"
    book.remarks.append(
        f"select, {race.name}, round {race.round}: {left} of {len(race.entrants)} candidates left, led by"
        f" {leaders}; {race.spent} of at most {race.trainings} trainings"
    )


def _end_race(book: Bookkeeping, race: Race) -> str | None:
    """Note the end of a race, and return its winner; None if the loss of every baseline became non-finite."""
    winner = race.winner()
    diverged = f"select: the loss of every candidate of {race.name} became non-finite with a fresh seed"
    if winner is None and race.name == "search":
        raise NoResult(diverged)
    leaders, probabilities = race.leaders(), race.probabilities()
    options = book.sweep.options if race.name == "search" else ()
    reason = "one complete trial" if len(race.searched) == 1 else None
    book.journal.note(
        "selected",
        race=race.name,
        winner=winner,
        leaders=leaders,
        probabilities=probabilities,
        rounds=race.round,
        spent=race.spent,
        trainings=race.trainings,
        reason=reason,
        without=[label for label in options if label not in leaders],
    )
    if winner is None:
        book.remarks.append(f"{diverged}; this student alone is trained at the values of what it is compared with")
        return None
    others = [f"{key} ({p:.0%})" for key, p in probabilities.items() if p >= LIKELY and key != winner]
    also = f"; it could also be {', '.join(others)}" if others else ""
    book.remarks.append(
        f"select, {race.name}: {winner} wins, the best candidate with probability {probabilities[winner]:.0%}{also}"
    )
    return winner
