"""kdtrain sweep FILE: runs a sweep to its report, or continues it. Heavy modules are imported when they are needed."""

import argparse
import os
import shlex
import sys
from typing import TYPE_CHECKING

from kdtrain.cli.common import Interruption, add_address, add_data, add_results, read_sweep, sweep_parser
from kdtrain.errors import NoResult, UserError
from kdtrain.trials.records import STAGES

if TYPE_CHECKING:
    from kdtrain.config.sweep import Sweep
    from kdtrain.study.study import Study


def main(arguments: list[str] | None = None) -> int:
    """Return exit code 0: done; 1: no result; 2: the user has something to correct; 130: interrupted."""
    chosen = options().parse_args(arguments)
    try:
        if chosen.check:
            from kdtrain.cli.check import check

            return check(chosen)
        if chosen.plan:
            from kdtrain.cli.plan import plan

            return plan(chosen)
        return _run(chosen, read_sweep(chosen))
    except UserError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return 2
    except OSError as error:  # a full disk or a lost cluster: what was finished stays
        cause = f"{error.filename or chosen.results}: {error.strerror or error}"
        print(f"{cause}; correct the cause and continue with:\n{_again(chosen)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; trainings continue from their checkpoints. Continue: {_again(chosen)}", file=sys.stderr)
        return 130


def options() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = sweep_parser("sweep", "Searches, confirms and reports: one sweep file in, results/<sweep>/report.md out.")
    parser.add_argument("--check", action="store_true", help="the same as kdtrain check FILE")
    parser.add_argument("--plan", action="store_true", help="the same as kdtrain plan FILE")
    stages = ", ".join(STAGES)
    parser.add_argument("--stage", choices=STAGES, metavar="STAGE", help=f"only what is missing of one stage: {stages}")
    add_results(parser)
    add_data(parser)
    add_address(parser)
    return parser


def _run(chosen: argparse.Namespace, sweep: "Sweep") -> int:
    from kdtrain.api.sweeps import opened, report

    on_this_machine = chosen.address is None
    failure: NoResult | None = None
    with (
        Interruption() as interruption,
        opened(
            sweep, chosen.results, chosen.data, _again(chosen), check_capacity=on_this_machine, only=chosen.stage
        ) as study,
    ):
        try:
            if study.begin():
                _execute(study, chosen, interruption)
        except NoResult as error:
            failure = error
        interruption.check()
        path, folder = report(study), study.journal.files
    print(f"{sweep.name}: {path}" + (f", and in {folder}" if folder.url else ""))
    if failure is None and (broken := study.broken_jobs()):
        print(broken, file=sys.stderr)
    if failure is not None:
        print("\n".join(failure.problems), file=sys.stderr)
        return 1
    return 0


def _execute(study: "Study", chosen: argparse.Namespace, interruption: Interruption) -> None:
    """Run the study on Ray, whose messages go to a file, with a line of progress on the terminal."""
    from kdtrain.api.sweeps import url_of_data
    from kdtrain.cli.display import Display, quiet
    from kdtrain.study.capacity import first_place

    folder = study.journal.files
    log = folder.path / "ray.log"
    where = f"on the cluster at {chosen.address}"
    if chosen.address is None:
        study.placed = first_place(study.sweep.resources)
        where = f"on {study.placed}"
    print(f"{study.sweep.name}: {where}; results in {folder}, Ray's own messages in {log}")
    about = study.journal.study_record()
    assert about is not None
    for note in about["data_notes"]:
        print(f"note: {note}")
    sys.stdout.flush()
    with quiet(log) as terminal:
        from kdtrain.executors.ray_tune import execute

        with Display(study, terminal).shown():
            execute(study, chosen.address, url_of_data(chosen.data), interruption.check)


def _again(chosen: argparse.Namespace) -> str:
    """Return the command line that continues this sweep, in any shell: it names the data that KDTRAIN_DATA named."""
    words = ["kdtrain", "sweep", chosen.file]
    options = {**vars(chosen), "data": chosen.data or os.environ.get("KDTRAIN_DATA") or None}
    for name in ("trials", "stage", "results", "data", "address", "seed"):
        value = options[name]
        if value is not None and (name, value) != ("results", "results"):
            words += [f"--{name}", str(value)]
    for override in chosen.set:
        words += ["--set", override]
    return shlex.join(words)
