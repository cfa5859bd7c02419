"""Data sets, their views and mixup. `registry` lists the data sets."""
