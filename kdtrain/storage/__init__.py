"""Folders, URLs and the cache of a node."""
