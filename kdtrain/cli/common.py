"""What the commands share: the options of a sweep, and errors as sentences."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from kdtrain.errors import UserError

if TYPE_CHECKING:
    from kdtrain.config.sweep import Sweep


def sweep_parser(command: str, description: str) -> argparse.ArgumentParser:
    """Return a parser of a sweep file and of the options that change it."""
    parser = argparse.ArgumentParser(prog=f"kdtrain {command}", description=description)
    parser.add_argument("file", metavar="FILE", help="a sweep, such as sweeps/digits_kd.yaml")
    parser.add_argument("--trials", type=int, metavar="N", help="searched trials, instead of study.trials")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, such as recipe.epochs=3; repeatable"
    )
    parser.add_argument("--seed", type=int, metavar="S", help="instead of study.seed")
    return parser


def add_results(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the results."""
    help_text = "folder or URL of results (default: results)"
    parser.add_argument("--results", default="results", metavar="DIR", help=help_text)


def add_data(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the data sets."""
    parser.add_argument("--data", metavar="DIR", help="folder or URL of the data sets (default: KDTRAIN_DATA)")


def add_address(parser: argparse.ArgumentParser) -> None:
    """Add the option that names a Ray cluster."""
    parser.add_argument("--address", metavar="ADDR", help="a running Ray cluster (default: a Ray on this machine)")


def read_sweep(chosen: argparse.Namespace) -> "Sweep":
    """Return the sweep that the parsed options describe; raise UserError for every mistake in it."""
    from kdtrain.config.sweep import load_sweep

    if not Path(chosen.file).exists():
        raise UserError(f"{chosen.file}: no such file; `kdtrain example` lists sweeps and prints one")
    return load_sweep(chosen.file, chosen.set, chosen.trials, chosen.seed)


def guarded(work: Callable[[], int]) -> int:
    """Return the exit code of `work`; print a UserError or an OSError as a sentence and return 2."""
    try:
        return work()
    except UserError as error:
        print("\n".join(error.problems), file=sys.stderr)
    except BrokenPipeError:
        raise  # the reader of a pipe has gone, such as `head`
    except OSError as error:
        print(f"{error.filename or 'error'}: {error.strerror or error}", file=sys.stderr)
    return 2
