"""python run_sweep.py: the command `kdtrain sweep`."""

import sys

from kdtrain.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())
