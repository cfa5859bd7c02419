"""One module per distillation method. A new method is a module here, a line in `registry` and a test."""
