"""The sweep's command line. Nothing heavy is imported before it is needed: --help answers at once."""

import argparse
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtrain.errors import UserError

if TYPE_CHECKING:
    from kdtrain.config import Sweep

DESCRIPTION = "Searches, confirms and reports: one sweep file in, results/<sweep>/report.md out."


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: done; 1: the study ended without a result; 2: something to mend in what was asked; 130: stopped."""
    chosen = _parser().parse_args(arguments)
    try:
        return _dispatch(chosen)
    except UserError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"stopped; everything finished is kept. Continue: {_again(chosen)}", file=sys.stderr)
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
    parser.add_argument("--results", default="results", metavar="DIR", help="where results go (default: results)")
    parser.add_argument("--data", metavar="DIR", help="where data sets lie (default: KDTRAIN_DATA)")
    parser.add_argument("--address", metavar="ADDR", help="a running Ray cluster (default: a Ray of our own, here)")
    parser.add_argument("--seed", type=int, metavar="S", help="instead of study.seed")
    return parser


def _dispatch(chosen: argparse.Namespace) -> int:
    from kdtrain.config import load_sweep

    sweep = load_sweep(chosen.file, chosen.set, chosen.trials, chosen.seed)
    if chosen.check:
        print(f"{chosen.file}: valid; {len(sweep.parameters)} searched parameters, {sweep.study.trials} trials")
        return 0
    if chosen.plan:
        from kdtrain.plan import plan

        print(plan(sweep, chosen.data))
        return 0
    return _run(chosen, sweep)


def _run(chosen: argparse.Namespace, sweep: "Sweep") -> int:
    from kdtrain import data
    from kdtrain.record import Record
    from kdtrain.store import Store
    from kdtrain.study import Study, describe
    from kdtrain.terminal import Display, quiet

    results, data_root = Path(chosen.results), data.data_folder(chosen.data)
    if chosen.address is None:
        from kdtrain.resources import concurrent_trials, machine_resources

        concurrent_trials(sweep.resources, machine_resources())
    study = Study(sweep, Store(results), Record(results / sweep.name), data_root)
    study.record.open(describe(sweep, data_root), Path(chosen.file).read_text())
    study.record.append("opened", command=_again(chosen))
    log = study.record.folder / "ray.log"
    print(f"{sweep.name}: results in {study.record.folder}, Ray's own messages in {log}", flush=True)
    signal.signal(signal.SIGTERM, _interrupt)
    with quiet(log) as terminal:
        from kdtrain.execute import execute

        display = Display(study, terminal)
        with display.shown():
            execute(study, chosen.address)
    from analysis import build_report

    report = build_report(study.record.folder)
    print(f"{sweep.name}: {report}")
    return 0


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _again(chosen: argparse.Namespace) -> str:
    """The command line that was given, in one normal form."""
    words = ["python", "run_sweep.py", chosen.file]
    for name in ("trials", "results", "data", "address", "seed"):
        value = getattr(chosen, name)
        if value is not None and (name, value) != ("results", "results"):
            words += [f"--{name}", str(value)]
    words += [word for override in chosen.set for word in ("--set", f"'{override}'")]
    return " ".join(words)
