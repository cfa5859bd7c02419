"""Runs a sweep from Python; the command `kdtrain sweep` runs the same steps with a terminal around them."""

import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Literal

import torch

from kdtrain.api.results import StudyResult, open_study
from kdtrain.api.training import ONE_TRAINING, arguments_named, process_kept, require_paths
from kdtrain.config.sweep import Sweep
from kdtrain.data.registry import data_folder, load, named_data
from kdtrain.errors import NoResult, UserError
from kdtrain.runtime.process import cpu_threads
from kdtrain.storage.folder import Folder, write_bytes
from kdtrain.storage.mirror import results_folder
from kdtrain.study.capacity import machine_resources, placement, with_gpus
from kdtrain.study.description import describe
from kdtrain.study.journal import FILES, StudyJournal
from kdtrain.study.study import Study
from kdtrain.trials.store import Store
from kdtrain.trials.workspace import Workspace

CPU = torch.device("cpu")
REPORT_MARK = ".report"
"""The file beside a report that tells what it rests on."""


@arguments_named()
@process_kept()
def run_sweep(
    sweep: Sweep,
    results: str | Path = "results",
    data: str | Path | None = None,
    executor: Literal["ray", "local"] = "ray",
    address: str | None = None,
) -> StudyResult:
    """Run a sweep, or continue it, and write its report.

    Trainings that have ended are never repeated: the same call continues a sweep that was cut off. The call works in
    any thread and beside a running event loop, and restores the process settings that it changes meanwhile.

    Args:
        sweep: The sweep, from `load_sweep` or `Sweep.from_dict`.
        results: Folder or URL (`s3://bucket/results`) of the results.
        data: Folder or URL of the data sets; None takes the environment variable KDTRAIN_DATA.
        executor: "ray" runs trials in processes of Ray, several at once; "local" runs one job after another in this
            process, for a debugger, a notebook or a test. Both give the same numbers.
        address: Address of a running Ray cluster; None starts a Ray on this machine. For the executor "ray" only.

    Returns:
        The study's winner, comparison and trials.

    Raises:
        UserError: The sweep does not fit the machine or the data, or the results cannot be written.
        NoResult: The study ended without a result. Its report is written nevertheless. The error says if the same call
            helps: it tries again what broke, but trainings whose loss became non-finite give the same again.

    Example:
        >>> sweep = kdtrain.load_sweep("sweeps/digits_kd.yaml", overrides=["study.trials=8"])
        >>> study = kdtrain.run_sweep(sweep, executor="local")
        >>> study.comparison.difference, study.comparison.interval
    """
    if not isinstance(sweep, Sweep):
        raise UserError(f"sweep: must be a Sweep, see load_sweep and Sweep.from_dict; got {type(sweep).__name__}")
    if executor not in ("ray", "local"):
        raise UserError(f"executor: must be ray or local, got {executor!r}")
    if executor == "local" and address is not None:
        raise UserError(f"address: needs the executor ray, got {address!r} with the executor local")
    require_paths(results=results, data="" if data is None else data)
    where, source = str(results), None if data is None else str(data)
    command = _call(sweep, where, named_data(source), executor, address)
    failure: NoResult | None = None
    device = CPU
    if executor == "local":
        from kdtrain.executors import local

        device = local.device_for(sweep.resources)
    with opened(sweep, where, source, command, check_capacity=address is None, device=device) as study:
        try:
            if study.begin():
                _execute(study, executor, address, source)
        except NoResult as error:
            failure = error
        report(study)
    if failure is not None:
        raise failure
    return open_study(study.journal.files.path)


def _execute(study: Study, executor: str, address: str | None, data: str | None) -> None:
    if executor == "local":
        from kdtrain.executors import local

        with ONE_TRAINING, cpu_threads(study.sweep.resources.cpus_per_worker):  # threads as in a process of Ray
            local.execute(study)
    else:
        from kdtrain.executors import ray_tune

        ray_tune.execute(study, address, url_of_data(data))


@contextmanager
def opened(
    sweep: Sweep,
    results: str,
    data: str | None,
    command: str,
    *,
    check_capacity: bool,
    device: torch.device = CPU,
    only: str | None = None,
) -> Iterator[Study]:
    """Open the study of a sweep for this process alone; its journal names the `command` that continues it.

    `device` is that of trainings in this process. `check_capacity` says that they are to run on this machine.

    If a new study is refused with a UserError before anything was trained, what it has written is removed again.
    """
    store, data_root = results_folder(results), data_folder(data)
    on_gpu = None  # a cluster says it later
    if check_capacity:
        machine = machine_resources(sweep.resources)
        placement(sweep.resources, [machine])
        on_gpu = bool(with_gpus(sweep.resources, [machine]).gpus_per_worker)
    load.cache_clear()  # images may have been edited since this process has read them for another study
    folder = store.folder(sweep.name)
    about = describe(sweep, data_root, StudyJournal(folder).study_record())
    is_new = not any(folder.has(name) for name in FILES)
    made = [path for path in folder.path.parents if not path.exists()]
    with _held(folder):
        journal = StudyJournal(folder)
        try:
            journal.open(about, sweep.located.text)
            journal.append("opened", command=command, data=named_data(data))
            study = Study(sweep, Workspace(Store(store), data_root, device), journal, only)
            study.on_gpu = on_gpu
            yield study
        except UserError:
            if is_new and journal.is_idle():
                journal.remove()
                with suppress(OSError):  # a folder stays if anything else is in it
                    for path in made:
                        path.rmdir()
            raise


def report(study: Study) -> Path:
    """Write the report of a study that has ended or was stopped; return its path on this machine.

    A report is left as it is if nothing has happened since it was written.
    """
    folder = study.journal.files
    rests_on = f"{study.journal.digest()} kdtrain {metadata.version('kdtrain')}"
    path, mark = folder.path / "report.md", folder.path / REPORT_MARK
    if folder.url is None and path.exists() and mark.exists() and mark.read_text() == rests_on:
        return path
    from analysis.report import write_report

    study.workspace.store.fetch_for_reports()
    folder.fetch_all("*")  # another node may have written the arrays of the pictures
    path = write_report(folder.path)
    write_bytes(mark, rests_on.encode())
    folder.publish()
    return path


def url_of_data(data: str | None) -> str | None:
    """Return the URL from which each node of a cluster fetches the data sets; None if they are in a folder."""
    place = named_data(data)
    return place if place is not None and "://" in place else None


def _call(sweep: Sweep, results: str, data: str | None, executor: str, address: str | None) -> str:
    """Return the Python call that continues a sweep; `sweep` stands for one that was made from a dict."""
    loaded = "sweep"
    if sweep.located.has_lines:
        arguments = [repr(sweep.located.file), *([f"overrides={list(sweep.overrides)!r}"] if sweep.overrides else [])]
        arguments += [
            f"{option}={getattr(sweep.study, option)}"
            for option in ("trials", "seed")
            if sweep.located.places.get(("study", option)) == f"--{option}"
        ]
        loaded = f"kdtrain.load_sweep({', '.join(arguments)})"
    named = {"results": results, "data": data, "executor": executor, "address": address}
    options = [f"{name}={value!r}" for name, value in named.items() if value is not None]
    return f"kdtrain.run_sweep({', '.join([loaded, *options])})"


@contextmanager
def _held(folder: Folder) -> Iterator[None]:
    """Hold a study's folder; raise UserError if another process holds it or it cannot be written."""
    with ExitStack() as stack:
        try:
            stack.enter_context(folder.lock(f"kdtrain sweep {uuid.uuid4().hex}", wait=False))
        except BlockingIOError as error:
            where = f" ({error})" if folder.url else ""
            raise UserError(f"{folder}: another sweep is at work there{where}; wait for it or stop it") from None
        except OSError as error:
            text = f"cannot be written ({error.strerror}); name another folder with --results"
            raise UserError(f"{folder}: {text}") from None
        yield
