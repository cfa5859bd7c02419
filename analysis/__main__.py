"""python -m analysis: the command `kdtrain report`."""

import sys

from kdtrain.cli.report import main

if __name__ == "__main__":
    sys.exit(main())
