"""One module per method. A new one is a file here, a line in `registry` and a test."""
