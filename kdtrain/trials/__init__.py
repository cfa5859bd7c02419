"""What a trial is: its identity, its folder in the store, its outcome."""
