"""Workspace: what every training of a process works with, besides its recipe."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch

from kdtrain.config.recipe import Recipe
from kdtrain.data.base import Dataset
from kdtrain.data.registry import AnyData, load
from kdtrain.errors import UserError
from kdtrain.runtime import distributed
from kdtrain.storage.cache import Cache
from kdtrain.trials.identity import finished_teacher_id, trial_id
from kdtrain.trials.store import Store, TrialFolder


@dataclass(frozen=True)
class Workspace:
    """Where trainings read and write: store, data root, device, and the node's cache of images and outputs."""

    store: Store
    data_root: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    cache: Cache | None = None

    def dataset(self, config: AnyData) -> Dataset:
        """Return the data set of a recipe, which a process reads once; UserError if it is absent or damaged."""
        return load(config, self.data_root)

    def trial_id(self, recipe: Recipe, place: str = "recipe.student") -> str:
        """Return a recipe's identity, 16 hexadecimal digits; see `identity` for `place` and errors."""
        return trial_id(recipe, self.data_root, place)

    def trial(self, recipe: Recipe, place: str = "recipe.student") -> TrialFolder:
        """Return the folder of a recipe's trial, which knows its `trial_id`; see there for arguments and errors."""
        return self.store.trial(self.trial_id(recipe, place))

    def finished_teacher(self, recipe: Recipe) -> TrialFolder:
        """Return the folder of the evaluation of a recipe's finished teacher; UserError if its file is absent."""
        return self.store.trial(finished_teacher_id(recipe, self.dataset(recipe.data)))

    def _require_one_trial(self, trial_id: str) -> None:
        """Raise UserError, on all ranks, if ranks on several machines have other images, weights or code."""
        own = torch.tensor(int(trial_id, 16) - 2**63, device=self.device)
        of_rank_0 = distributed.sum_over_ranks(own.clone() if distributed.rank() == 0 else torch.zeros_like(own))
        if distributed.sum_over_ranks((own != of_rank_0).long()):
            raise UserError(
                f"workers: images, weights or kdtrain differ between the {distributed.size()} processes of this"
                " training: its recipe has another trial_id there; give all machines the same ones and start again"
            )

    @contextmanager
    def reserved_trial(self, recipe: Recipe) -> Iterator[TrialFolder]:
        """Reserve a recipe's trial for this process or its group of workers; rank 0 waits for another holder."""
        trial = self.trial(recipe)
        self._require_one_trial(trial.trial_id)
        with reserved(trial):
            yield trial


@contextmanager
def reserved(trial: TrialFolder) -> Iterator[TrialFolder]:
    """Reserve a trial as `Workspace.reserved_trial` does."""
    with trial.lock() if distributed.rank() == 0 else nullcontext():
        distributed.barrier()
        yield trial
