"""python -m kdtrain.cluster: the command `kdtrain cluster`."""

import sys

from kdtrain.cli.cluster import main

if __name__ == "__main__":
    sys.exit(main())
