"""What the user writes: located YAML, spaces, Recipe, Sweep."""

from kdtrain.config.recipe import Recipe
from kdtrain.config.sweep import Sweep, load_recipe, load_sweep

__all__ = ["Recipe", "Sweep", "load_recipe", "load_sweep"]
