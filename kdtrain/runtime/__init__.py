"""Random numbers, processes and devices."""
