"""The connection to Ray: a Ray of its own on this machine, or a running cluster, and the nodes of either."""

import faulthandler
import os
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from kdtrain.config.study_settings import Resources
from kdtrain.errors import UserError
from kdtrain.study.bookkeeping import STARTING
from kdtrain.study.capacity import bootstrap, machine_resources, nodes_at_least, nodes_at_most
from kdtrain.study.study import Study

OBJECT_STORE_BYTES = 200 << 20
CONNECT_S = 10.0
NODES_COME_S = 180.0
DRIVER_SLOTS = 64
"""Drivers of trials with several workers take a slot, not a CPU: Ray refuses 0 CPUs, and with 0.01 of 2 CPUs two
workers of one CPU would never start."""
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # with Tune's own handler `fit` returns normally after Ctrl-C
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    # nothing reads Tune's snapshots: they are at least 10 s apart and not atomic, so the study's journal is continued
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",
    "PYTHONWARNINGS": "ignore",
}
OWN_ENVIRONMENT = {
    # glibc keeps freed memory in the process, in one arena of 2 MiB pages. Otherwise each training step requests its
    # pages again (18 % of a LeNet5 step), and each trial, which runs in a thread, leaves an arena behind
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"
    ":glibc.malloc.trim_threshold=2147483647:glibc.malloc.mmap_threshold=1073741824",
    "RAY_prestart_worker_first_driver": "0",  # a process for each CPU, which no trial would take
}
"""What a Ray of its own has besides: its processes inherit the environment in which it starts."""


@contextmanager
def connected(resources: Resources, address: str | None) -> Iterator[None]:
    """Connect this process to the Ray cluster at `address`, or to a Ray of its own, while the context lasts."""
    if ray.is_initialized():
        raise UserError("executor: this process is already connected to a Ray; call ray.shutdown() first")
    start = _own_ray(resources) if address is None else _running_ray(address)
    with _handlers_kept(), start:
        yield


def cluster_nodes(address: str) -> tuple[list[Mapping[str, float]], list[Mapping[str, float]]]:
    """Return the resources of the nodes that a cluster has, and of those that it may grow to."""
    with connected(Resources(), address):
        there = alive_nodes()
        return list(there), nodes_at_most(there, bootstrap())


def alive_nodes() -> list[dict[str, float]]:
    """Return the resources of each node that is alive."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def this_machine(resources: Resources) -> list[dict[str, float]]:
    """Return the resources of the one node of a Ray of its own, whose memory is that which was free at its start."""
    limit_bytes = machine_resources(resources)["memory"]  # Ray does not know the limits of nested control groups
    return [{**node, "memory": min(node.get("memory", limit_bytes), limit_bytes)} for node in alive_nodes()]


def await_nodes(study: Study) -> None:
    """Wait until the cluster has its least number of nodes, at most `NODES_COME_S`."""
    wanted, deadline = nodes_at_least(bootstrap()), time.monotonic() + NODES_COME_S
    while (there := len(alive_nodes())) < wanted and time.monotonic() < deadline:
        study.stage = f"waiting for nodes: {there} of {wanted} are there"
        time.sleep(1.0)
    study.stage = STARTING


@contextmanager
def _running_ray(address: str) -> Iterator[None]:
    _require_listener(address)
    with _environment(ENVIRONMENT):
        try:
            _initialize(address=address)
        except (ConnectionError, ValueError, RuntimeError) as error:
            token = "; if it requires a token, set RAY_AUTH_MODE=token"
            raise UserError(f"--address: no Ray cluster answers at {address} ({error}){token}") from None
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def _own_ray(resources: Resources) -> Iterator[None]:
    there = machine_resources(resources)
    _remove_leftovers()
    temporary = tempfile.mkdtemp(prefix=f"kdtrain-ray-{os.getpid()}-", dir="/tmp")  # Ray's sockets need a short path
    with _environment(ENVIRONMENT | OWN_ENVIRONMENT, RAY_TMPDIR=temporary):
        try:
            _initialize(
                # "local": otherwise Ray joins any cluster that runs on this machine
                address="local",
                num_cpus=int(there["CPU"]), num_gpus=int(there["GPU"]), resources={"slot": DRIVER_SLOTS},
                # Ray Train's cleaner needs the dashboard's State API. Without it the first pruned trial leaves the
                # placement group of its workers behind, and the next trial waits for ever
                include_dashboard=resources.workers > 1, dashboard_host="127.0.0.1",
                object_store_memory=OBJECT_STORE_BYTES, _temp_dir=temporary,
            )  # fmt: skip
            # Ray Train's cleaner looks for the one Ray of the machine and gives up if another one runs there, so that
            # the workers of a pruned trial keep their CPUs for ever. This file, below RAY_TMPDIR, names the right one
            address_file = Path(temporary) / "ray" / "ray_current_cluster"
            address_file.parent.mkdir(exist_ok=True)
            address_file.write_text(ray.get_runtime_context().gcs_address)
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(temporary, ignore_errors=True)


def _initialize(**options: Any) -> None:
    """Call `ray.init` without its two SIGTERM handlers, of which one exits with code 15 and the other aborts."""
    with _handlers_kept():
        ray.init(log_to_driver=False, **options)


@contextmanager
def _handlers_kept() -> Iterator[None]:
    """Restore the handlers of signals and of faults, which `ray.init` and Tune replace in the caller's process."""
    on_main_thread = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1) if on_main_thread else ()
    handlers = {number: signal.getsignal(number) for number in numbers}
    faults_shown = faulthandler.is_enabled()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:  # None: not installed from Python, and so not replaceable
                signal.signal(number, handler)
        if not faults_shown:
            faulthandler.disable()


@contextmanager
def _environment(defaults: Mapping[str, str], **values: str) -> Iterator[None]:
    """Set environment variables, `defaults` only if the user has not; restore them afterwards, and those that Ray sets.

    Ray's PYTHONBREAKPOINT would take `breakpoint()` from the caller's debugger.
    """
    before = dict(os.environ)
    os.environ.update({name: value for name, value in defaults.items() if name not in before} | values)
    try:
        yield
    finally:
        of_ray = [name for name in os.environ if name.startswith("RAY_")]
        for name in {*defaults, *values, *of_ray, "PYTHONBREAKPOINT"}:
            if name in before:
                os.environ[name] = before[name]
            else:
                os.environ.pop(name, None)


def _remove_leftovers() -> None:
    """Remove the temporary folders of drivers that were killed."""
    for folder in Path("/tmp").glob("kdtrain-ray-*-*"):
        pid = folder.name.split("-")[2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _require_listener(address: str) -> None:
    """Raise UserError if nothing listens at HOST:PORT: `ray.init` would wait there for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto", or a name that Ray looks up
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UserError(f"--address: no Ray cluster answers at {address} ({error.strerror or error})") from None
