"""Carries a Study out on Ray Tune: one Tuner for all stages, so that warm processes serve every training.

Tune's own snapshots are not used: the study and the store are the truth, and every start makes a fresh Tuner.
"""

import os
import shutil
import signal
import socket
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from kdtrain.config import space
from kdtrain.config.study_settings import Resources
from kdtrain.errors import NoResult, UserError
from kdtrain.executors.ray_worker import check_node, ray_storage, run_job
from kdtrain.storage.folder import write_bytes
from kdtrain.study.capacity import (
    bootstrap,
    concurrent_trials,
    machine_resources,
    nodes_at_least,
    nodes_at_most,
    per_worker,
)
from kdtrain.study.study import STARTING, Job, Study

PROCESS_RESTARTS = 2
OBJECT_STORE_BYTES = 200 << 20
CONNECT_S = 10.0
NODES_COME_S = 180.0
OWN_RAY = {
    # glibc keeps freed memory in the process, in one arena of 2 MiB pages. Otherwise each training step asks the system
    # for its pages again (18 % of a LeNet5 step), and each trial, which runs in a thread, leaves an arena behind
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1"
    ":glibc.malloc.trim_threshold=2147483647:glibc.malloc.mmap_threshold=1073741824",
    "RAY_prestart_worker_first_driver": "0",  # a process for each CPU that no trial would take
    "TUNE_GLOBAL_CHECKPOINT_S": "inf",  # nobody reads Tune's snapshots
}
"""The environment of a Ray of our own."""
DRIVER_SLOTS = 64
"""Drivers of trials with several workers take a slot, not a CPU: the CPUs are their workers'."""


def execute(study: Study, address: str | None, data: str | None = None) -> None:
    """Runs every job of the study; raises UserError for what the user can mend, KeyboardInterrupt when interrupted.
    data: the URL from which each node fetches the data sets, if there is one."""
    resources = study.sweep.resources
    with _connected(resources, address), Interruption() as interruption:
        if address is not None:
            _await_nodes(study)
        limit = concurrent_trials(resources, nodes_at_most(_alive(), bootstrap()))
        if resources.workers > 1:
            limit = min(limit, int(ray.cluster_resources().get("slot", 0)))
            if limit == 0:
                start = f"ray start --head --resources '{{\"slot\": {DRIVER_SLOTS}}}'"
                raise UserError(f"--address: the drivers of several workers need a slot; start the head with: {start}")
        reuse = resources.workers == 1
        rays = study.journal.files.folder(".ray")
        rays.clear()  # of a driver that was killed
        # one process of this machine for each trial at once
        keep_warm = limit if reuse and address is None else 0
        common = _common(study, address is not None, data)
        searcher = StudySearcher(study, keep_warm, common, interruption.check)
        if address is not None:
            _check_nodes(study, searcher)
        driver = {"slot": 1.0} if resources.workers > 1 else per_worker(resources)
        storage, files = ray_storage(searcher.common["ray_storage"])
        tuner = tune.Tuner(
            tune.with_resources(run_job, driver),
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=StudyScheduler(searcher),
                num_samples=-1, max_concurrent_trials=limit, reuse_actors=reuse,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=storage, storage_filesystem=files, verbose=0,
                failure_config=tune.FailureConfig(max_failures=PROCESS_RESTARTS),
            ),
        )  # fmt: skip
        try:
            tuner.fit()
        finally:
            rays.clear()
    if searcher.error is not None:
        raise searcher.error
    if not searcher.finished:
        raise NoResult("Ray Tune ended before the study did; ray.log may say why. The same command continues")


class Interruption:
    """Ctrl-C and SIGTERM while a Ray is there, in place of the two handlers that Ray has put on SIGTERM: one exits, the
    other aborts. `check` raises again where the first KeyboardInterrupt was swallowed: in a destructor it only prints.
    """

    def __init__(self) -> None:
        self.told = False

    def __enter__(self) -> "Interruption":
        self._handle(self._interrupt)
        return self

    def __exit__(self, *_: object) -> None:
        self._handle(signal.default_int_handler)

    @staticmethod
    def _handle(handler: Callable[[int, Any], Any]) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)

    def check(self) -> None:
        if self.told:
            raise KeyboardInterrupt

    def _interrupt(self, number: int, frame: object) -> None:
        self.told = True
        raise KeyboardInterrupt


def cluster_nodes(address: str) -> tuple[list[Mapping[str, float]], list[Mapping[str, float]]]:
    """The resources of the nodes that a cluster has, and of those that it may have. UserError where none answers."""
    with _connected(Resources(), address):
        there = _alive()
        return list(there), nodes_at_most(there, bootstrap())


class StudySearcher(Searcher):
    """Hands the study's jobs to Tune as configs and tells the study when they have ended.

    keep_warm: how many processes to start at once and to keep. Tune ends all but one idle process at each barrier of a
    study, and gives a process that is still starting up for one that is free; so while the study waits, idle trials
    hold the processes, and the first trials wait for one another. 0: leave it to Tune.
    """

    def __init__(
        self, study: Study, keep_warm: int, common: dict[str, Any], check_interrupted: Callable[[], None]
    ) -> None:
        super().__init__()
        self.study = study
        self.common = common
        self.check_interrupted = check_interrupted
        self.keep_warm = keep_warm
        self.warmed = 0
        self.waiting_since: float | None = None
        self.pending: Iterator[Job | None] = study.jobs()
        self.by_tune_id: dict[str, Job] = {}
        self.error: Exception | None = None
        self.finished = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        self.check_interrupted()
        if self.error is not None:
            return Searcher.FINISHED
        if self.warmed < self.keep_warm:
            self.warmed += 1
            return {**self.common, "kind": "warm", "processes": self.keep_warm}
        try:
            job = next(self.pending)
        except StopIteration:
            self.finished = True
            return Searcher.FINISHED
        except Exception as error:  # Tune would wrap it, and end with a traceback of its own
            self.error = error
            return Searcher.FINISHED
        if job is None:
            return self._idle() if self.keep_warm else None
        self.waiting_since = None
        self.by_tune_id[trial_id] = job
        return {
            **self.common,
            "kind": job.kind,
            "key": job.key,
            "recipe": job.recipe.model_dump(mode="json"),
            "trial_id": job.trial_id,
            "final": job.final,
            "also": [recipe.model_dump(mode="json") for recipe in job.trained],
        }

    def _idle(self) -> dict[str, Any]:
        """A trial that only waits: a twentieth of the time waited already, so that it delays by no more than that."""
        now = time.monotonic()
        self.waiting_since = self.waiting_since or now
        pause_s = min(max(0.05 * (now - self.waiting_since), 0.05), 30.0)
        return {**self.common, "kind": "idle", "pause_s": pause_s}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        job = self.by_tune_id.pop(trial_id, None)
        if job is None:
            return
        if (result or {}).get("unfit"):
            self.error = UserError(str(result["broken"]))  # type: ignore[index]
        died = f"its process died {PROCESS_RESTARTS + 1} times" if error else None
        self.study.ended(job, died or (result or {}).get("broken"))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's record and the store hold it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see save."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudyScheduler(FIFOScheduler):
    """First in, first out; stops what the study prunes."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self.searcher.check_interrupted()
        job = self.searcher.by_tune_id.get(trial.trial_id)
        if self.searcher.error is not None:
            return TrialScheduler.STOP
        if job is not None and "broken" not in result and self.searcher.study.should_prune(job, result["epoch"]):
            return TrialScheduler.STOP
        return TrialScheduler.CONTINUE


def _common(study: Study, on_cluster: bool, data: str | None) -> dict[str, Any]:
    """What every job's process is told. scratch: a folder of its own node, or of all where they share the results;
    mark: a file in it that a node which does not share them lacks."""
    files, store = study.journal.files, study.workspace.store.folder
    scratch = files.path.absolute() / ".ray"
    mark = f"mark-{uuid.uuid4().hex}"
    write_bytes(scratch / mark, b"")
    return {
        "results": store.url or str(store.path.absolute()),
        "sweep": study.sweep.name,
        "scratch": str(scratch),
        "mark": mark,
        "ray_storage": f"{store.url}#{study.sweep.name}/.ray" if on_cluster and store.url else str(scratch),
        "data": data or str(study.workspace.data_root),
        "resources": study.sweep.resources.model_dump(),
        "readings": study.sweep.readings(),
    }


def _alive() -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def _await_nodes(study: Study) -> None:
    """Until the nodes that the cluster is to have at least are there; with those that are after a while."""
    wanted, deadline = nodes_at_least(bootstrap()), time.monotonic() + NODES_COME_S
    while (there := len(_alive())) < wanted and time.monotonic() < deadline:
        study.stage = f"waiting for nodes: {there} of {wanted} are there"
        time.sleep(1.0)
    study.stage = STARTING


def _check_nodes(study: Study, searcher: StudySearcher) -> None:
    """Raises UserError for every node that is there and cannot carry out the study's jobs."""
    recipe = study.search.sweep.recipe_for(space.probe_points(study.sweep.tree)[0], 0).model_dump(mode="json")
    work = ray.remote(num_cpus=0, max_retries=0)(check_node)
    asked = {
        node["NodeManagerAddress"]: work.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(searcher.common, recipe)
        for node in ray.nodes()
        if node["Alive"]
    }
    problems = []
    for address, answer in asked.items():
        try:
            problem = ray.get(answer)
        except RayError as error:  # it has no kdtrain, or another one; or it has just gone, which is no mistake
            still_there = any(node["Alive"] and node["NodeManagerAddress"] == address for node in ray.nodes())
            problem = f"node {address}: {str(error).strip().splitlines()[-1]}" if still_there else None
        if problem:
            problems.append(problem)
    if problems:
        raise UserError(*problems)


@contextmanager
def _connected(resources: Resources, address: str | None) -> Iterator[None]:
    """A Ray of our own on this machine for as long as this lasts, or the one at `address`."""
    if address is not None:
        _refuse_silence(address)
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            token = "; if it asks for a token, set RAY_AUTH_MODE=token"
            raise UserError(f"--address: no Ray cluster answers at {address} ({error}){token}") from None
        try:
            yield
        finally:
            ray.shutdown()
        return
    there = machine_resources()
    _sweep_up()
    temporary = tempfile.mkdtemp(prefix=f"kd-{os.getpid()}-", dir="/tmp")  # Ray's sockets need a short path
    os.environ["RAY_TMPDIR"] = temporary  # where all processes of this Ray look for its address, see below
    for name, value in OWN_RAY.items():  # read when a process starts; a user's own stand
        os.environ.setdefault(name, value)
    try:
        ray.init(
            address="local", num_cpus=int(there["CPU"]), num_gpus=int(there["GPU"]), resources={"slot": DRIVER_SLOTS},
            # the dashboard cleans up after workers of a pruned trial; on loopback, as is Ray's default
            include_dashboard=resources.workers > 1, dashboard_host="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES, log_to_driver=False, _temp_dir=temporary,
        )  # fmt: skip
        # without it the cleaner of Ray Train gives up where another Ray runs on this machine, and the workers of a
        # pruned trial keep their CPUs for ever
        address_file = Path(temporary) / "ray" / "ray_current_cluster"
        address_file.parent.mkdir(exist_ok=True)
        address_file.write_text(ray.get_runtime_context().gcs_address)
        yield
    finally:
        ray.shutdown()
        os.environ.pop("RAY_TMPDIR", None)
        shutil.rmtree(temporary, ignore_errors=True)


def _sweep_up() -> None:
    """Removes the temporary folders of drivers that were killed."""
    for folder in Path("/tmp").glob("kd-*-*"):
        pid = folder.name.split("-")[1]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)


def _refuse_silence(address: str) -> None:
    """UserError where nothing listens at HOST:PORT: Ray itself would wait for minutes."""
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if not colon or not port.isdecimal():
        return  # "auto", or a name that Ray looks up
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S).close()
    except OSError as error:
        raise UserError(f"--address: no Ray cluster answers at {address} ({error.strerror or error})") from None
