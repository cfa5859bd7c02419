"""Run a sweep with several study seeds and count its verdicts: how much of a verdict is luck?

python benchmarks/study_seeds.py sweeps/digits_kd.yaml --seeds 10 --results DIR
    the sweep as it is
python benchmarks/study_seeds.py sweeps/digits_kd.yaml --seeds 20 --results DIR \\
    --set 'recipe.method={name: kd, balance: {weight: 0.0}, temperature: 4.0}' --set recipe.epochs=8 \\
    --set recipe.teacher.epochs=8 --set recipe.batch_size=64 --set study.trials=24 \\
    --set 'study.pruner={name: asha, min_epochs: 4, reduction: 2}' \\
    --set 'recipe.label_smoothing={uniform: [0, 0.3]}' --set recipe.teacher.label_smoothing=0.0
    with a distillation weight of 0 there is nothing to find, so every decided verdict is a false one

Trials run one after another in this process. A run that was cut off goes on.
"""

import argparse
from collections import Counter

import kdtrain as kd


def main() -> None:
    parser = argparse.ArgumentParser(description="Runs a sweep with several study seeds and counts its verdicts.")
    parser.add_argument("file")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--results", required=True, help="one folder below it for each seed")
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    chosen = parser.parse_args()
    verdicts: Counter[str] = Counter()
    print("| seed | winner minus student alone, points of test accuracy | verdict |\n|--:|--:|:--|")
    for seed in range(chosen.seeds):
        sweep = kd.load_sweep(chosen.file, overrides=chosen.overrides, seed=seed)
        study = kd.run_sweep(sweep, results=f"{chosen.results}/{seed}", executor="local")
        difference, interval = study.comparison.difference, study.comparison.interval
        shown = "no interval" if interval is None else f"{100 * interval[0]:+.2f} to {100 * interval[1]:+.2f}"
        verdict = study.comparison.verdict.partition(":")[0]
        verdicts[verdict] += 1
        print(f"| {seed} | {100 * difference:+.2f} [{shown}] | {verdict} |", flush=True)
    print(f"\n{', '.join(f'{name} {count}' for name, count in verdicts.items())} of {chosen.seeds}")


if __name__ == "__main__":
    main()
