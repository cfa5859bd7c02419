"""python -m kdtrain.cluster CLUSTER.yaml SWEEP.yaml"""

import sys

from kdtrain.cli.cluster import main

if __name__ == "__main__":
    sys.exit(main())
