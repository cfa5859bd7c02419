"""Sweep files and recipes: read with their line numbers, checked, and given as frozen objects."""
