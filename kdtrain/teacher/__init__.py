"""The trained teacher and its outputs, live or cached."""
