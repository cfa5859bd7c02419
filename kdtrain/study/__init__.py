"""Many trials: the stages, the search, the journal, the plan."""
