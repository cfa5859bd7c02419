"""The Python API behind the names that `import kdtrain` offers."""
