"""kdtrain check FILE: every mistake of a sweep file at once, each with its line, and notes about absent inputs."""

import argparse
from typing import TYPE_CHECKING

from kdtrain.cli.common import add_data, guarded, read_sweep, sweep_parser
from kdtrain.errors import printable

if TYPE_CHECKING:
    from kdtrain.config.sweep import Sweep


def main(arguments: list[str] | None = None) -> int:
    """Return exit code 0 if the file is valid, else 2."""
    parser = sweep_parser("check", "Validates a sweep file, and notes what it names that is not there yet.")
    add_data(parser)
    chosen = parser.parse_args(arguments)
    return guarded(lambda: check(chosen))


def check(chosen: argparse.Namespace) -> int:
    """Validate the file of the parsed options; absent data or weights are notes, since they may come later."""
    from kdtrain.study.inputs import input_notes, require_fitting_data
    from kdtrain.study.warm_start import check_warm_start

    sweep = read_sweep(chosen)
    absent = check_warm_start(sweep)
    require_fitting_data(sweep, chosen.data)
    print(f"{printable(chosen.file)}: valid; {len(sweep.parameters)} searched parameters, {_size(sweep)}")
    for note in [*input_notes(sweep, chosen.data), *absent]:
        print(f"note: {printable(note)}")
    return 0


def _size(sweep: "Sweep") -> str:
    trials, budget = sweep.study.trials, sweep.study.budget
    parts = [f"{trials} trials"] if trials is not None else []
    return ", ".join([*parts, f"{budget.total:g} {budget.unit}"] if budget is not None else parts)
