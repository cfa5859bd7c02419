"""What the user writes: located YAML, spaces, Recipe, Sweep."""
