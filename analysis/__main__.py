"""python -m analysis results/digits_kd"""

import argparse
import sys
from pathlib import Path

from analysis import build_report
from kdtrain.errors import UserError


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="Rebuild report.md, its pictures and trials.csv of a sweep from the store alone.",
    )
    parser.add_argument("sweep_folder", type=Path, help="the sweep's folder in the results, e.g. results/digits_kd")
    arguments = parser.parse_args()
    try:
        report = build_report(arguments.sweep_folder)
    except UserError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or arguments.sweep_folder}: {error.strerror or error}", file=sys.stderr)
        return 2
    print(report)
    return 0


if __name__ == "__main__":
    sys.exit(main())
