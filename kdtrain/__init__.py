"""Hyperparameter sweeps for knowledge distillation of image classifiers.

    import kdtrain as kd

    sweep = kd.load_sweep("sweeps/digits_kd.yaml", overrides=["study.trials=8"])
    study = kd.run_sweep(sweep, results="results", executor="local")
    study.comparison.difference, study.comparison.interval

The import loads neither torch nor Ray: each name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdtrain.api.results import Comparison, StudyResult, Winner, open_study
    from kdtrain.api.sweeps import run_sweep
    from kdtrain.api.training import train
    from kdtrain.config.recipe import Recipe
    from kdtrain.config.sweep import Sweep, load_recipe, load_sweep
    from kdtrain.errors import NoResult, UserError
    from kdtrain.methods import losses

__version__ = "0.1.0"
__all__ = [
    "Comparison",
    "NoResult",
    "Recipe",
    "StudyResult",
    "Sweep",
    "UserError",
    "Winner",
    "load_recipe",
    "load_sweep",
    "losses",
    "open_study",
    "run_sweep",
    "train",
]
_MODULE_OF = {
    "Comparison": "kdtrain.api.results",
    "NoResult": "kdtrain.errors",
    "Recipe": "kdtrain.config.recipe",
    "StudyResult": "kdtrain.api.results",
    "Sweep": "kdtrain.config.sweep",
    "UserError": "kdtrain.errors",
    "Winner": "kdtrain.api.results",
    "load_recipe": "kdtrain.config.sweep",
    "load_sweep": "kdtrain.config.sweep",
    "open_study": "kdtrain.api.results",
    "run_sweep": "kdtrain.api.sweeps",
    "train": "kdtrain.api.training",
}


def __getattr__(name: str) -> Any:
    """Load a name of the API when it is first used."""
    if name == "losses":
        return importlib.import_module("kdtrain.methods.losses")
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'kdtrain' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
