"""From a sweep's folder to report.md, pictures and trials.csv: reads the store, without torch or Ray."""

from pathlib import Path

__all__ = ["build_report"]


def build_report(sweep_folder: Path) -> Path:
    """Write report.md, its pictures and trials.csv into a sweep's folder; returns report.md.

    An unfinished study gets a report that says so. UserError: no such folder, not a sweep's, a newer schema.
    """
    from analysis.report import write_report  # here, so that importing analysis (and --help) stays fast

    return write_report(sweep_folder)
