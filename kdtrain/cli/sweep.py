"""The sweep's command line. Nothing heavy is imported before it is needed: --help answers at once."""

import argparse
import os
import shlex
import signal
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from kdtrain.errors import NoResult, UserError

if TYPE_CHECKING:
    from kdtrain.config.sweep import Sweep
    from kdtrain.storage.folder import Folder
    from kdtrain.study.study import Study

DESCRIPTION = "Searches, confirms and reports: one sweep file in, results/<sweep>/report.md out."


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done; 1: the study ended without a result; 2: something to mend in what was asked; 130: stopped."""
    chosen = _parser().parse_args(arguments)

    try:
        return _dispatch(chosen)
    except UserError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a lost cluster: nothing that was finished is lost
        print(
            f"{error.filename or chosen.results}: {error.strerror or error}; mend it and continue with:",
            file=sys.stderr,
        )
        print(_again(chosen), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"stopped; trainings go on from their checkpoints. Continue: {_again(chosen)}", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python run_sweep.py", description=DESCRIPTION)
    parser.add_argument("file", metavar="FILE", help="a sweep, such as sweeps/digits_kd.yaml")
    parser.add_argument("--check", action="store_true", help="only validate the file")
    parser.add_argument("--plan", action="store_true", help="print stages, space and cost; start nothing")
    parser.add_argument("--trials", type=int, metavar="N", help="searched trials, instead of study.trials")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override, such as recipe.epochs=3; repeatable"
    )
    parser.add_argument(
        "--results", default="results", metavar="DIR", help="where results go: a folder or a URL (default: results)"
    )
    parser.add_argument("--data", metavar="DIR", help="where data sets lie (default: KDTRAIN_DATA)")
    parser.add_argument("--address", metavar="ADDR", help="a running Ray cluster (default: a Ray of our own, here)")
    parser.add_argument("--seed", type=int, metavar="S", help="instead of study.seed")
    return parser


def _dispatch(chosen: argparse.Namespace) -> int:
    from kdtrain.config.sweep import load_sweep

    sweep = load_sweep(chosen.file, chosen.set, chosen.trials, chosen.seed)
    if chosen.check:
        print(f"{chosen.file}: valid; {len(sweep.parameters)} searched parameters, {sweep.study.trials} trials")
        return 0
    if chosen.plan:
        from kdtrain.runtime.process import prepare_process
        from kdtrain.study.plan import plan

        cluster = None
        if chosen.address is not None:
            from kdtrain.cli.display import quiet

            with quiet(Path(os.devnull)):
                from kdtrain.executors.ray_tune import cluster_nodes

                cluster = cluster_nodes(chosen.address)
        prepare_process(sweep.resources.cpus_per_worker)  # the plan times training steps
        print(plan(sweep, chosen.data, cluster))
        return 0
    return _run(chosen, sweep)


def _run(chosen: argparse.Namespace, sweep: "Sweep") -> int:
    from kdtrain.data.registry import data_folder
    from kdtrain.storage.mirror import results_folder
    from kdtrain.study.capacity import concurrent_trials, machine_resources
    from kdtrain.study.description import describe
    from kdtrain.study.journal import StudyJournal
    from kdtrain.study.study import Study
    from kdtrain.trials.store import Store
    from kdtrain.trials.workspace import Workspace

    results, data_root = results_folder(chosen.results), data_folder(chosen.data)
    if chosen.address is None:
        concurrent_trials(sweep.resources, [machine_resources()])
    about = describe(sweep, data_root)
    folder = results.folder(sweep.name)
    new = not folder.path.exists() and not folder.has("study.json")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with _claimed(folder):
        record = StudyJournal(folder)
        try:
            record.open(about, sweep.located.text)
            record.append("opened", command=_again(chosen))
            return _carry_out(Study(sweep, Workspace(Store(results), data_root), record), chosen)
        except UserError:
            if new and record.is_idle():
                _leave_nothing(folder)
            raise


@contextmanager
def _claimed(folder: "Folder") -> Iterator[None]:
    """The sweep's folder for this process alone; UserError where another is at work there, or it cannot be written."""
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.lock(f"run_sweep.py {uuid.uuid4().hex}", wait=False))
        except BlockingIOError as error:
            where = f" ({error})" if folder.url else ""
            raise UserError(f"{folder}: another run_sweep.py is at work there{where}; wait for it or stop it") from None
        except OSError as error:
            text = f"cannot be written ({error.strerror}); name another folder with --results"
            raise UserError(f"{folder}: {text}") from None
        yield


def _carry_out(study: "Study", chosen: argparse.Namespace) -> int:
    from kdtrain.cli.display import Display, quiet

    name, folder = study.sweep.name, study.journal.files
    log = folder.path / "ray.log"
    print(f"{name}: results in {folder}, Ray's own messages in {log}", flush=True)
    no_result: NoResult | None = None
    with quiet(log) as terminal:
        from kdtrain.executors.ray_tune import execute

        try:
            with Display(study, terminal).shown():
                execute(study, chosen.address, chosen.data if "://" in (chosen.data or "") else None)
        except NoResult as error:
            no_result = error
    from analysis.report import write_report

    study.workspace.store.fetch_for_reports()
    folder.fetch_all("*")  # pictures' arrays may come from another node
    report = write_report(folder.path)
    folder.publish()
    print(f"{name}: {report}" + (f", and in {folder}" if folder.url else ""))
    if no_result is not None:
        print("\n".join(no_result.problems), file=sys.stderr)
        return 1
    return 0


def _leave_nothing(folder: "Folder") -> None:
    """Removes what a start that was refused has made, and the folder of results if that leaves it empty."""
    folder.clear()
    with suppress(OSError):
        folder.path.parent.rmdir()


def _again(chosen: argparse.Namespace) -> str:
    """The command line that was given, in one normal form."""
    words = ["python", "run_sweep.py", chosen.file]
    for name in ("trials", "results", "data", "address", "seed"):
        value = getattr(chosen, name)
        if value is not None and (name, value) != ("results", "results"):
            words += [f"--{name}", str(value)]
    for override in chosen.set:
        words += ["--set", override]
    return shlex.join(words)
