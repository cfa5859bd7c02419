"""`python -m analysis results/digits_kd` rebuilds a report, `python -m analysis results` the overview of all sweeps."""

import argparse
import sys
from pathlib import Path

from analysis.overview import write_overview
from analysis.report import write_report
from kdtrain.errors import UserError


def main() -> int:
    """Run the command and return its exit code: 0, or 2 if the user has something to correct."""
    parser = argparse.ArgumentParser(
        prog="python -m analysis",
        description="From stored results alone: rebuild report.md, the pictures and trials.csv of a sweep, or write "
        "overview.md and forest.png over all sweeps of a results folder.",
    )
    parser.add_argument("folder", type=Path, help="folder of a sweep (results/digits_kd) or of several (results)")
    folder = parser.parse_args().folder
    try:
        written, unreadable = _build(folder)
    except UserError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{error.filename or folder}: {error.strerror or error}", file=sys.stderr)
        return 2
    for reason in unreadable:
        print(reason, file=sys.stderr)
    print(written)
    return 0


def _build(folder: Path) -> tuple[Path, list[str]]:
    if folder.is_dir() and not (folder / "study.json").exists():
        return write_overview(folder)
    return write_report(folder), []


if __name__ == "__main__":
    sys.exit(main())
