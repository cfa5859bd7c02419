"""Runs a study on Ray Tune: one Tuner for all stages, so that its warm processes serve every training.

`Tuner.restore` is not used. Its snapshots lag behind, a kill can tear them, and then Ray starts over without an error.
The study and the store are the truth, and every start makes a fresh Tuner.
"""

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
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
from kdtrain.executors.ray_cluster import DRIVER_SLOTS, alive_nodes, await_nodes, connected, this_machine
from kdtrain.executors.ray_worker import check_node, ray_storage, run_job
from kdtrain.runtime.source_code import code_digest
from kdtrain.storage.folder import write_bytes
from kdtrain.study.capacity import (
    Nodes,
    Placement,
    bootstrap,
    gpu_name,
    kinds_of_gpus,
    most_at_once,
    names_of_gpus,
    nodes_at_most,
    placed,
    placement,
    with_gpus,
)
from kdtrain.study.jobs import Broken, Job
from kdtrain.study.study import Study


def execute(
    study: Study,
    address: str | None = None,
    data: str | None = None,
    check_interrupted: Callable[[], None] = lambda: None,
    trainable: Callable[[dict[str, Any]], None] = run_job,
) -> None:
    """Run every job of the study on the cluster at `address`, or on a Ray of this machine that ends with the study.

    Args:
        study: An open study.
        address: Address of a running Ray cluster, or None.
        data: The URL from which each node fetches the data sets; None if they are in the workspace's data root.
        check_interrupted: Called at each of Tune's events; what it raises ends the study.
        trainable: Runs a job in a process of Ray.
    """
    with connected(study.sweep.resources, address):
        if address is not None:
            await_nodes(study)
        alive = this_machine(study.sweep.resources) if address is None else alive_nodes()
        gpu = gpu_name() if address is None else ", ".join(names_of_gpus(alive)) or "GPU"
        places = Places(study, alive, bootstrap(), gpu)
        study.on_gpu = places.on_gpu
        limit = places.most_at_once
        if places.drivers:
            limit = min(limit, int(ray.cluster_resources().get("slot", 0)))
        if limit == 0:
            start = f"ray start --head --resources '{{\"slot\": {DRIVER_SLOTS}}}'"
            raise UserError(
                f"--address: the drivers of trials with several workers need a slot; start the head with: {start}"
            )
        reuse = not places.drivers
        ray_files = study.journal.files.folder(".ray")
        ray_files.clear()  # of a driver that was killed
        settings = _job_settings(study, places.resources, address is not None, data)
        if address is not None:
            _check_nodes(study, settings)
        searcher = StudySearcher(study, places, reuse and address is None, settings, check_interrupted)
        storage, files = ray_storage(settings["ray_storage"])
        tuner = tune.Tuner(
            tune.with_resources(trainable, _needs),
            # without a `metric` a job need not report one, such as smoke and pictures
            tune_config=tune.TuneConfig(
                search_alg=searcher, scheduler=StudyScheduler(searcher),
                # an upper bound, also of the trials that wait for new nodes; the searcher keeps to the present number
                num_samples=-1, max_concurrent_trials=limit, reuse_actors=reuse,
                trial_dirname_creator=lambda trial: trial.trial_id,
            ),
            run_config=tune.RunConfig(
                name="tune", storage_path=storage, storage_filesystem=files, verbose=0,
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )  # fmt: skip
        try:
            with _missing_results_unmentioned():
                tuner.fit()
        finally:
            ray_files.clear()
    check_interrupted()
    if searcher.error is not None:
        raise searcher.error
    if not searcher.finished:
        raise NoResult("Ray Tune ended before the study did; ray.log may give the reason. The same command continues")


def _needs(config: dict[str, Any]) -> tune.PlacementGroupFactory:
    """Return what Tune reserves for a job; processes are reused for jobs with equal needs only."""
    return tune.PlacementGroupFactory([dict(config["needs"])])


class Places:
    """Where the jobs of a study run, on nodes that are there or may come.

    Teachers, preflight checks and measurements of latency have a GPU of their own, because nothing has measured them;
    so has a trial that runs alone. Everything else shares GPUs as `placement` says.
    """

    def __init__(self, study: Study, alive: Nodes, cluster: Mapping[str, Any], gpu: str) -> None:
        """Take the nodes that are alive, the cluster's own configuration, and the name of the GPUs."""
        self._study = study
        self._nodes = nodes_at_most(alive, cluster)
        self._gpu = gpu
        self._gpu_kinds = kinds_of_gpus(alive, cluster)
        self.resources = with_gpus(study.sweep.resources, self._nodes)
        self.on_gpu = bool(self.resources.gpus_per_worker)
        self.drivers = self.resources.workers > 1
        placement(study.sweep.resources, self._nodes)  # a UserError now rather than later
        self.most_at_once = most_at_once(study.sweep.resources, self._nodes)

    def of(self, job: Job) -> Placement:
        """Return where a job runs."""
        return self._placement(alone=job.alone or job.stage in ("smoke", "latency", "teacher"))

    def announce(self) -> None:
        """Tell the study where its trials run."""
        memory, place = self._study.memory, self._placement(alone=False)
        if memory is not None and self.on_gpu != (memory["gpu_total_bytes"] > 0):
            memory = None  # measured on another kind of device
        device = "cpu"
        if self.on_gpu:
            device = memory["device"] if memory else self._gpu
        sentence = placed(place, device, memory)
        if self._gpu_kinds > 1 and place.trials_per_gpu == 1:
            sentence += ", because there are or may be GPUs of other kinds; resources.trials_per_gpu overrules it"
        self._study.place(sentence, device, place.trials_per_gpu, place.at_once)

    def _placement(self, alone: bool) -> Placement:
        study = self._study
        return placement(study.sweep.resources, self._nodes, study.memory, gpu_kinds=self._gpu_kinds, alone=alone)

    def needs(self, job: Job) -> dict[str, float]:
        """Return what Tune reserves for a job: what a trial of one worker takes, or a driver's slot.

        A driver's workers are placed by Ray Train.
        """
        own_process = not self.drivers or (job.kind in ("smoke", "latency") and self.on_gpu)
        return dict(self.of(job).worker) if own_process else {"slot": 1.0}


class StudySearcher(Searcher):
    """The study as a Tune searcher: its jobs are suggestions, and it is notified when they have ended.

    `reuse_actors` keeps one idle process only while a stage ends, and takes a process that is still starting for a free
    one: a sweep of short trials would run in one process for ever. So the first trials, of kind "warm", wait for one
    another, and trials of kind "idle" hold the processes while the study waits. If jobs need another share of a GPU,
    new processes are started in the same way.
    """

    def __init__(
        self,
        study: Study,
        places: Places,
        keep_warm: bool,
        settings: dict[str, Any],
        check_interrupted: Callable[[], None],
    ) -> None:
        """Take the study's jobs; with `keep_warm` processes are started at once and kept, otherwise Tune decides."""
        super().__init__()
        self.study = study
        self.places = places
        self.settings = settings
        self.check_interrupted = check_interrupted
        self.keep_warm = keep_warm
        self.processes: dict[str, float] = {}  # what each of the processes that are kept takes
        self.limit = 1  # trials at once, those that only wait included
        self.rounds = 0  # of starting processes
        self.to_warm = 0  # processes still to be started
        self.waiting_since: float | None = None
        self.pending: Iterator[Job | None] = study.jobs()
        self.next: Job | None = None  # taken from the study, and not handed out yet
        self.live: set[str] = set()
        self.by_tune_id: dict[str, Job] = {}
        self.error: Exception | None = None
        self.finished = False

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        self.check_interrupted()
        if self.error is not None:
            return Searcher.FINISHED
        if any(job.alone for job in self.by_tune_id.values()):
            return None
        if self.next is None:
            try:
                self.next = next(self.pending)
            except StopIteration:
                self.finished = True
                return Searcher.FINISHED
            except Exception as error:  # Tune would wrap it and print a traceback of its own
                self.error = error
                return Searcher.FINISHED
        suggestion = self._idle() if self.next is None else self._start(self.next, trial_id)
        if suggestion is not None:
            self.live.add(trial_id)
        return suggestion

    def _start(self, job: Job, trial_id: str) -> dict[str, Any] | None:
        """Return the next job, or a trial that starts a process for it; None if it has to wait."""
        place, needs = self.places.of(job), self.places.needs(job)
        self.limit = 1 if job.alone else place.at_once
        if needs != self.processes:
            self.processes, self.rounds = needs, self.rounds + 1
            self.to_warm = self.limit if self.keep_warm and not job.alone else 0
        self.places.announce()
        if len(self.live) >= self.limit:
            return None
        shared = {**self.settings, "needs": needs}
        if self.to_warm:
            self.to_warm -= 1
            return {**shared, "kind": "warm", "processes": self.limit, "round": self.rounds}
        self.next, self.waiting_since = None, None
        self.by_tune_id[trial_id] = job
        return {
            **shared,
            "kind": job.kind,
            "key": job.key,
            "recipe": job.recipe.model_dump(mode="json"),
            "trial_id": job.trial_id,
            "final": job.final,
            "alone": job.alone,
            "also": [recipe.model_dump(mode="json") for recipe in job.trained],
        }

    def _idle(self) -> dict[str, Any] | None:
        """Return a trial that only waits, for a twentieth of the time waited so far: it delays by no more than that."""
        if not self.keep_warm or len(self.live) >= self.limit:
            return None
        now = time.monotonic()
        self.waiting_since = self.waiting_since or now
        pause_s = min(max(0.05 * (now - self.waiting_since), 0.05), 30.0)
        return {**self.settings, "kind": "idle", "needs": self.processes, "pause_s": pause_s}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.live.discard(trial_id)
        job = self.by_tune_id.pop(trial_id, None)
        if job is None:
            return
        result = result or {}
        broken = Broken(**json.loads(result["broken"])) if result.get("broken") else None
        if error:
            broken = Broken("its process was killed, or its node was lost")
        elif broken is not None and result["unfit"]:
            self.error = UserError(broken.reason)
        elif result.get("measured"):
            self.study.measured(job, json.loads(result["measured"]))
        try:
            self.study.ended(job, broken)
        except UserError as mistake:  # of a sampler or pruner of the user's own
            self.error = mistake

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the study's journal and the store hold everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class StudyScheduler(FIFOScheduler):
    """First in, first out; stops the trials that the study prunes.

    Tune's own ASHA would keep its rungs in memory, where a killed driver loses them.
    """

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.searcher = searcher

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        self.searcher.check_interrupted()
        job = self.searcher.by_tune_id.get(trial.trial_id)
        if self.searcher.error is not None:
            return TrialScheduler.STOP
        try:
            stop = job is not None and "broken" not in result and self.searcher.study.should_prune(job, result["epoch"])
        except UserError as mistake:
            self.searcher.error, stop = mistake, True
        return TrialScheduler.STOP if stop else TrialScheduler.CONTINUE


@contextmanager
def _missing_results_unmentioned() -> Iterator[None]:
    """Drop Tune's warning about each trial that has no result.json: without Tune's loggers none has one."""
    logger = logging.getLogger("ray.tune.analysis.experiment_analysis")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _job_settings(study: Study, resources: Resources, on_cluster: bool, data: str | None) -> dict[str, Any]:
    """Return the part of the config that all jobs share.

    `scratch` is a folder of each node, or of all nodes if they share the results. `mark` is a file in it, which a node
    that does not share the results lacks. `code` has the digests of the methods' modules as this process runs them.
    """
    files, store = study.journal.files, study.workspace.store.folder
    scratch = files.path.absolute() / ".ray"
    mark = f"mark-{uuid.uuid4().hex}"
    write_bytes(scratch / mark, b"")
    methods = [*study.search.sweep.methods(), *study.baselines.sweep.methods()]  # the baselines' is the teachers' too
    return {
        "results": store.url or str(store.path.absolute()),
        "sweep": study.sweep.name,
        "scratch": str(scratch),
        "mark": mark,
        "ray_storage": f"{store.url}#{study.sweep.name}/.ray" if on_cluster and store.url else str(scratch),
        "data": data or str(study.workspace.data_root),
        "resources": resources.model_dump(),
        "readings": study.sweep.readings(),
        "code": {type(method).__module__: code_digest(type(method).__module__) for method in methods},
    }


def _check_nodes(study: Study, settings: dict[str, Any]) -> None:
    """Raise UserError, with a problem for each node that is alive and cannot run the study's jobs."""
    recipe = study.search.sweep.recipe_for(space.probe_points(study.sweep.tree)[0], 0).model_dump(mode="json")
    task = ray.remote(num_cpus=0, max_retries=0)(check_node)
    checks = {
        node["NodeManagerAddress"]: task.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(settings, recipe)
        for node in ray.nodes()
        if node["Alive"]
    }
    problems = []
    for address, check in checks.items():
        try:
            problem = ray.get(check)
        except (
            RayError
        ) as error:  # the node has no kdtrain, or another version of it; or it has gone, which is no mistake
            still_there = any(node["Alive"] and node["NodeManagerAddress"] == address for node in ray.nodes())
            problem = f"node {address}: {str(error).strip().splitlines()[-1]}" if still_there else None
        if problem:
            problems.append(problem)
    if problems:
        raise UserError(*problems)
