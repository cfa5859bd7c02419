"""What the commands share: the options of a sweep, and errors as sentences."""

import argparse
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from kdtrain.errors import UserError
from kdtrain.storage.folder import user_path

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

    if not user_path(chosen.file, "FILE").exists():
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


class Interruption:
    """Handlers of Ctrl-C and SIGTERM that raise KeyboardInterrupt and remember it.

    Python drops a KeyboardInterrupt that is raised inside a destructor: a sweep went on after Ctrl-C and ended with
    exit code 0. `check` raises it again.
    """

    def __init__(self) -> None:
        self._came = False

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:
            signal.signal(number, self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal has come."""
        if self._came:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: object) -> None:
        self._came = True
        raise KeyboardInterrupt
