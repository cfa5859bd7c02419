"""kdtrain check FILE: every mistake of a sweep file at once, each with its line."""

import argparse

from kdtrain.cli.common import guarded, read_sweep, sweep_parser


def main(arguments: list[str] | None = None) -> int:
    """Return exit code 0 if the file is valid, else 2."""
    chosen = sweep_parser("check", "Validates a sweep file; needs no data.").parse_args(arguments)
    return guarded(lambda: check(chosen))


def check(chosen: argparse.Namespace) -> int:
    """Validate the file of the parsed options."""
    sweep = read_sweep(chosen)
    print(f"{chosen.file}: valid; {len(sweep.parameters)} searched parameters, {sweep.study.trials} trials")
    return 0
