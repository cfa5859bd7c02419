"""A race over seeds between promising recipes: who gets one more seed, who is dropped, and who wins.

In each round every candidate still in the race is trained with one more seed, the same for all. After it those that are
probably below the leader leave, and the lowest ones: a further round trains at most a third of what is left. A
decision depends on validation values alone, so a race that was cut off decides the same when it is carried out again.
The statistics are those of `racing`.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from kdtrain.study.racing import Posterior, best_probabilities, leader, next_round, posterior, to_drop
from kdtrain.study.selection import SearchedTrial
from kdtrain.trials.records import Racer

LIKELY = 0.05
"""A candidate of at least this probability could be the best one."""


@dataclass(frozen=True)
class Entrant:
    """A candidate of a race; it is compared with those of its own option only. `option` is None if there is one."""

    key: str
    option: str | None
    trial: SearchedTrial


@dataclass
class Race:
    """The race of a search's candidates.

    Attributes:
        name: "search", "baselines", or "baselines <student model>".
        entrants: The candidates, the most promising first.
        searched: The ranking key of every complete trial of the search, by the key of its candidate or its number.
        seed: The search's seed, which counts as one seed of every recipe.
        trainings: Maximum number of trainings.
        maximize: False if a lower objective is better.
    """

    name: str
    entrants: Sequence[Entrant]
    searched: Mapping[str, tuple[float, float]]
    seed: int
    trainings: int
    maximize: bool
    round: int = 0
    spent: int = 0
    dropped: dict[str, int] = field(default_factory=dict)  # the round after which a candidate has left
    improbable: set[str] = field(default_factory=set)  # those that left because they are probably below the leader
    diverged: set[str] = field(default_factory=set)
    _fresh: dict[str, dict[int, tuple[float, float]]] = field(default_factory=dict)  # ranking keys, by seed

    def next_round(self) -> list[Entrant]:
        """Return the candidates that get one more seed; none if the race has ended."""
        groups = self._groups()
        racing = [entrant for group in groups.values() if len(group) > 1 for entrant in group]
        return racing if self.spent + len(racing) <= self.trainings else []

    def end_round(self, seed: int, reached: Mapping[str, tuple[float, float] | None]) -> None:
        """Take the ranking keys that the candidates have reached with a seed, None if a loss became non-finite."""
        self.round += 1
        self.spent += len(reached)
        for key, ranking_key in reached.items():
            if ranking_key is None:
                self.diverged.add(key)
                self.dropped[key] = self.round
            else:
                self._fresh.setdefault(key, {})[seed] = ranking_key
        groups = [[entrant.key for entrant in group] for group in self._groups().values() if len(group) > 1]
        if not groups:
            return
        now, ties = self.posterior(), self._ties()
        left = (self.trainings - self.spent) // len(groups)
        for keys in groups:
            if left > 1:
                staying = next_round(now, keys, ties, left)
                self.dropped |= {key: self.round for key in keys if key not in staying}
            improbable = to_drop(now, keys, leader(now, keys, ties))
            self.improbable |= set(improbable)
            self.dropped |= dict.fromkeys(improbable, self.round)  # also after the last round

    def posterior(self) -> Posterior:
        """Return the posterior of the recipe means of all candidates whose losses are finite."""
        values = {key: {self.seed: ranking_key[0]} for key, ranking_key in self.searched.items()}
        for key, fresh in self._fresh.items():
            values[key] |= {seed: ranking_key[0] for seed, ranking_key in fresh.items()}
        for key in self.diverged:
            del values[key]
        if not values:
            return Posterior((), np.zeros(0), np.zeros((0, 0)), 0.0, 0.0)
        return posterior(values, [entrant.key for entrant in self.entrants if entrant.key in values])

    def leaders(self) -> dict[str, str]:
        """Return the leading candidate of each option ("" if there is none); an option that diverged has none."""
        now, ties = self.posterior(), self._ties()
        return {
            option: leader(now, [entrant.key for entrant in group], ties) for option, group in self._groups().items()
        }

    def winner(self) -> str | None:
        """Return the leader with the highest posterior mean; None if every candidate's loss became non-finite."""
        leaders = list(self.leaders().values())
        return leader(self.posterior(), leaders, self._ties()) if leaders else None

    def probabilities(self) -> dict[str, float]:
        """Return each candidate's probability of being the best of them."""
        now = self.posterior()
        found = best_probabilities(now, seed=self.seed) if now.keys else {}
        return {entrant.key: found.get(entrant.key, 0.0) for entrant in self.entrants}

    def standing(self) -> tuple[list[Racer], Posterior]:
        """Return a row for each candidate in the objective's own sign, and the posterior behind them."""
        now, sign = self.posterior(), 1 if self.maximize else -1
        place = {key: i for i, key in enumerate(now.keys)}
        rows: list[Racer] = []
        for entrant in self.entrants:
            fresh = [ranking_key[0] for ranking_key in self._fresh.get(entrant.key, {}).values()]
            i = place.get(entrant.key)
            rows.append(
                {
                    "candidate": entrant.key,
                    "option": entrant.option,
                    "trial_id": entrant.trial.trial_id,
                    "value": sign * self.searched[entrant.key][0],
                    "seeds": len(fresh),
                    "fresh": sign * statistics.fmean(fresh) if fresh else None,
                    "mean": None if i is None else sign * float(now.mean_C[i]),
                    "sd": None if i is None else float(now.covariance_CC[i, i]) ** 0.5,
                    "dropped": self.dropped.get(entrant.key),
                    "improbable": entrant.key in self.improbable,
                    "diverged": entrant.key in self.diverged,
                }
            )
        return rows, now

    def _groups(self) -> dict[str, list[Entrant]]:
        """Return the candidates still in the race by option."""
        groups: dict[str, list[Entrant]] = {}
        for entrant in self.entrants:
            if entrant.key not in self.dropped:
                groups.setdefault(entrant.option or "", []).append(entrant)
        return groups

    def _ties(self) -> dict[str, tuple[float, ...]]:
        """Return what decides between equal posterior means, smaller is better: mean NLL, then the trial's number."""
        ties: dict[str, tuple[float, ...]] = {}
        for entrant in self.entrants:
            ranking_keys = [self.searched[entrant.key], *self._fresh.get(entrant.key, {}).values()]
            ties[entrant.key] = (-statistics.fmean(second for _, second in ranking_keys), float(entrant.trial.number))
        return ties
