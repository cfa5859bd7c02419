"""python -m kdtrain RECIPE.yaml, also under torchrun."""

import sys

from kdtrain.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
