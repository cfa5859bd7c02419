"""python run_sweep.py sweeps/digits_kd.yaml"""

from kdtrain.cli.sweep import leave, main

if __name__ == "__main__":
    leave(main())
