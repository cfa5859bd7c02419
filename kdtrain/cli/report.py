"""kdtrain report FOLDER: the report of a sweep, or the overview of several, from what is stored; no torch, no Ray."""

import argparse
import sys
from pathlib import Path

from kdtrain.cli.common import guarded
from kdtrain.errors import UserError
from kdtrain.storage.folder import user_path


def main(arguments: list[str] | None = None) -> int:
    """Return exit code 0 if the report or overview is written, else 2."""
    parser = argparse.ArgumentParser(
        prog="kdtrain report",
        description="Writes report.md, its pictures and trials.csv of a sweep again, or overview.md and forest.png "
        "over all sweeps of a results folder.",
    )
    parser.add_argument("folder", help="a sweep's folder (results/digits_kd) or a folder of them (results)")
    written: str = parser.parse_args(arguments).folder
    return guarded(lambda: _write(user_path(written, "folder")))


def _write(folder: Path) -> int:
    if folder.is_file():
        raise UserError(f"{folder}: is a file; name the folder of a sweep, such as results/digits_kd, or of several")
    if folder.is_dir() and not (folder / "study.json").exists():
        from analysis.overview import write_overview

        written, unreadable = write_overview(folder)
    else:
        from analysis.report import write_report

        written, unreadable = write_report(folder), []
    for reason in unreadable:
        print(reason, file=sys.stderr)
    print(written)
    return 0
