"""From the store to what is read, without torch or Ray: a sweep's report, or the overview of all sweeps."""

from pathlib import Path

__all__ = ["build_overview", "build_report"]


def build_report(sweep_folder: Path) -> Path:
    """Write report.md, its pictures and trials.csv into a sweep's folder; returns report.md.

    An unfinished study gets a report that says so. UserError: no such folder, not a sweep's, a newer schema.
    """
    from analysis.report import write_report  # here, so that importing analysis (and --help) stays fast

    return write_report(sweep_folder)


def build_overview(results: Path) -> tuple[Path, list[str]]:
    """Write overview.md and forest.png into a results folder; returns overview.md, and why a sweep could not be read.

    Such a sweep is listed with its reason. UserError: there is no sweep in the folder.
    """
    from analysis.overview import write_overview

    return write_overview(results)
