"""python -m kdtrain: the command `kdtrain`, also under torchrun."""

import sys

from kdtrain.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
