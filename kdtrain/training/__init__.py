"""One recipe to its outcome."""
