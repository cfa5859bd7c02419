"""python run_sweep.py sweeps/digits_kd.yaml"""

import sys

from kdtrain.cli.sweep import main

if __name__ == "__main__":
    sys.exit(main())
