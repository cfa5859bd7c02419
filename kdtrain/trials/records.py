"""The types of the objects in a folder of results: what trials and studies write and reports read.

<results>/trials/<trial_id>/recipe.json     RecipeRecord
<results>/trials/<trial_id>/epochs.jsonl    EpochRow
<results>/trials/<trial_id>/outcome.json    Outcome
<results>/<sweep>/study.json                StudyRecord
<results>/<sweep>/record.jsonl              PlannedEvent, EndedEvent, and these, each with its `time`:
                                             opened (command), placed (PlacedEvent), round (RoundEvent), selected
                                             (SelectedEvent), latency (LatencyEvent), front (FrontEvent), winner
                                             (candidate, baseline, trial_id, confirmed), finished, no_result (reason),
                                             budget_end (BudgetEndEvent), warm_start (WarmStartEvent), tested (seeds,
                                             trials), seeds_grown (from, to), trials_grown (from, to)
<results>/<sweep>/errors/<job>-<attempt>.txt  the traceback of a job that broke

Every object has a `schema` and a `digest`, every row a `digest` (see `storage.sealed`); readers check and remove it.
Files written by an earlier version may lack keys that were added since, without a new schema number. Standard library
only.
"""

from collections.abc import Mapping
from typing import Any, Literal, NotRequired, TypedDict

STAGES = ("smoke", "teacher", "baselines", "search", "select", "confirm", "pictures")
"""The stages of a study, in order. The jobs "test" read the test split at the end of the stage confirm."""
EVENT_KEYS: dict[str, tuple[str, ...]] = {
    "planned": ("stage", "number"),
    "ended": ("stage", "number"),
    "round": ("race", "round"),
    "selected": ("race",),
    "latency": ("model", "head", "channels_last"),
    "front": ("race",),
    "winner": (),
    "tested": (),
    "budget_end": ("stage",),
    "warm_start": ("folder",),
}
"""The events of a journal of which the newest one counts, with the fields that tell one from another."""
State = Literal["complete", "pruned", "failed"]
"""How a training has ended. `failed`: its loss became non-finite, as it would again."""
JobState = Literal[State, "broken"]
"""How a job of a study has ended. `broken`: without an outcome, for a reason that is no property of its recipe."""


def network_name(network: Mapping[str, Any]) -> str:
    """Return how reports call a network of a recipe: its model, with its hidden layers or its other stem."""
    model, hidden, stem = network.get("model", "unknown"), network.get("hidden"), network.get("stem")
    widths = " " + "-".join(map(str, hidden)) if hidden else ""
    return f"{model}{widths}" + (f" (stem {stem})" if stem else "")


class Environment(TypedDict):
    """The machine and the versions of a training. `git_dirty` is a digest of what differs from the commit, or None."""

    device: str
    threads: int
    workers: int
    git_commit: str | None
    git_dirty: NotRequired[str | None]
    versions: dict[str, str]


class SharedImages(TypedDict):
    """How many images of each of a student's splits its teacher, or a teacher of that one, was trained on."""

    train: int
    val: int
    test: int


class TeacherReference(TypedDict, total=False):
    """The teacher of a distilled student: a trial of the same store, or a finished one from a file.

    `trial_id` of a finished one names the folder of its evaluation, which earlier versions did not make.
    `shared_images` are there if a teacher was trained on other data than its student. An ensemble has `members` only.
    """

    trial_id: str
    file: str
    sha256: str
    weights_key: str
    shared_images: SharedImages
    members: "list[TeacherReference]"


class DataSummary(TypedDict):
    """The data set of a training: its fingerprint and its numbers of classes and of images by split.

    `labels` is the number of training images with a label; earlier versions lack it, and had labels of all images.
    `val_classes` is the number of classes that have validation images, `val_most_frequent` the images of the largest.
    `unseen_classes` are the classes without a labelled training image, from 0, if there are any.
    """

    name: str
    fingerprint: str
    classes: int
    train: int
    val: int
    test: int
    labels: NotRequired[int]
    val_classes: NotRequired[int]
    val_most_frequent: NotRequired[int]
    unseen_classes: NotRequired[list[int]]


class RecipeRecord(TypedDict):
    """recipe.json: what is trained, on which data. `weights` are those of cross-entropy and distillation.

    If nothing is trained but a finished teacher evaluated, `finished` is its file, and `recipe` has its network as the
    student.
    """

    schema: NotRequired[int]
    numerics: int
    trial_id: str
    recipe: dict[str, Any]
    teacher: TeacherReference | None
    finished: NotRequired[TeacherReference]
    weights: list[float] | None
    data: DataSummary
    parameters: int
    environment: Environment


EpochRow = TypedDict(
    "EpochRow",
    {
        "epoch": int,
        "val/accuracy": float,
        "val/mpa": float,
        "val/nll": float,
        "val/ece": NotRequired[float],
        "images": int,
        "seconds": float,
        "teacher_images": int,
        "teacher_images_computed": NotRequired[int],
        "teacher_images_checked": NotRequired[int],
        "teacher_seconds": NotRequired[float],
        "teacher_forward_seconds": NotRequired[float],
        "views_seconds": NotRequired[float],
        "skipped_steps": NotRequired[float],
        "peak_memory_bytes": int,
    },
)
"""A row of epochs.jsonl. `epoch` counts from 1; seconds are those of rank 0, images those of all ranks. A row also has
`train/<term>` for each loss term, and further `val/<metric>` that depend on the method."""

BestEpoch = TypedDict(
    "BestEpoch",
    {
        "epoch": int,
        "val/accuracy": float,
        "val/mpa": NotRequired[float],
        "val/nll": float,
        "val/ece": NotRequired[float],
    },
)
"""The epoch whose weights a training keeps, with the metrics that can be objectives."""


class Outcome(TypedDict):
    """outcome.json: how a training ended. Its sums are over all epochs; `test` is filled by the final evaluation.

    `files` has the SHA-256 of weights.safetensors and predictions.npz, if they are kept.
    """

    schema: NotRequired[int]
    state: State
    reason: str | None
    epochs: int
    best: BestEpoch | None
    test: dict[str, float] | None
    parameters: int | None
    images: int
    teacher_images: int
    teacher_images_computed: int
    teacher_images_checked: int
    teacher_seconds: float
    teacher_forward_seconds: float
    views_seconds: float
    skipped_steps: NotRequired[float]
    files: NotRequired[dict[str, str]]
    seconds: float
    images_per_s: float | None
    peak_memory_bytes: int | None
    teacher_cache_off: NotRequired[str | None]
    image_cache_off: NotRequired[str | None]
    device: NotRequired[str]
    threads: NotRequired[int]
    workers: NotRequired[int]
    git_commit: NotRequired[str | None]
    git_dirty: NotRequired[str | None]
    versions: NotRequired[dict[str, str]]


class ParameterRecord(TypedDict):
    """A searched hyperparameter; it exists only if each choice in `conditions` has the label given there."""

    name: str
    kind: Literal["uniform", "loguniform", "int", "logint", "choice"]
    low: float | None
    high: float | None
    choices: list[Any] | None
    conditions: dict[str, Any]


class NetworkSize(TypedDict):
    """The size of a network."""

    parameters: int
    flops_per_image: int


class WeightsTaken(TypedDict):
    """The weights of a file that a network takes, and others that fit it too, as dotted paths in the file."""

    model: str
    file: str
    taken: str
    others: list[str]


class StudyRecord(TypedDict):
    """study.json: what a study searches.

    `models` are the networks that it can reach, by name; `data_notes` is what the owner of the images should know,
    `sampler_notes` what sampler and pruner do not do. `own_code` has the digest of each module of the user's own.
    """

    schema: NotRequired[int]
    name: str
    file: str
    overrides: list[str]
    recipe: dict[str, Any]
    study: dict[str, Any]
    resources: dict[str, Any]
    report: dict[str, Any]
    parameters: list[ParameterRecord]
    models: dict[str, NetworkSize]
    weights: NotRequired[list[WeightsTaken]]
    data_notes: NotRequired[list[str]]
    sampler_notes: NotRequired[list[str]]
    own_code: NotRequired[dict[str, str]]


class TrialSource(TypedDict):
    """The searched trial that a racing or a confirmed recipe was taken from."""

    stage: str
    number: int


class PlannedEvent(TypedDict):
    """A job was planned. `candidate` to `source` are those of racing and confirmed recipes, `baseline` of confirmed
    ones, `race` and `round` of racing ones.

    A racing recipe's `candidate` is "published 1" or the searched trial, "search 12" or "baselines 3"; its `role` is
    "candidate". A confirmed one's is "best", "best kd" (of an option), "front 1" (of a trade-off), "published 1" or
    "baseline 1", its `role` "best", "published" or "baseline". `attributes` are what the sampler has kept in Optuna's
    system attributes of the "trial" and the "study". `cost` is that of a searched trial's student in a trade-off.
    """

    event: Literal["planned"]
    time: float
    stage: str
    number: int
    trial_id: str | None
    values: dict[str, Any]
    published: bool
    candidate: NotRequired[str]
    role: NotRequired[str]
    seed: NotRequired[int]
    source: NotRequired[TrialSource]
    baseline: NotRequired[str | None]
    race: NotRequired[str]
    round: NotRequired[int]
    attributes: NotRequired[dict[str, dict[str, Any]]]
    cost: NotRequired[float]


class Racer(TypedDict):
    """A candidate of a race after a round.

    `option` is that of the compared choice, or the baseline's student model; None if there is one group only.
    `value` is the search's own objective, `seeds` the number of fresh seeds, `fresh` their mean objective (None before
    the first), `mean` and `sd` are of the posterior, in the objective's unit (None if it diverged). `dropped`
    is the round after which it left the race, None if it has not; `diverged` says that a loss became non-finite,
    `improbable` (absent in older studies) that it was probably below the leader, not only among the lowest means.
    """

    candidate: str
    option: str | None
    trial_id: str
    value: float
    seeds: int
    fresh: float | None
    mean: float | None
    sd: float | None
    dropped: int | None
    improbable: NotRequired[bool]
    diverged: bool


class RoundEvent(TypedDict):
    """A round of a race has ended. The standard deviations are those between recipes and of the residual.

    `race` is "search", "baselines", or "baselines <student model>". `spent` counts the trainings so far, of at most
    `trainings`.
    """

    event: Literal["round"]
    time: float
    race: str
    round: int
    racers: list[Racer]
    between_sd: float
    residual_sd: float
    spent: int
    trainings: int


class SelectedEvent(TypedDict):
    """A race has ended: its winner, the leader of each option, and each candidate's probability of being the best.

    `winner` is None if the loss of every candidate became non-finite with a fresh seed, which only baselines survive.
    `reason` says why there was no race: one complete trial. `without` names the options that have no complete trial.
    """

    event: Literal["selected"]
    time: float
    race: str
    winner: str | None
    leaders: dict[str, str]
    probabilities: dict[str, float]
    rounds: int
    spent: int
    trainings: int
    reason: str | None
    without: list[str]


class KnownTrial(TypedDict):
    """A complete trial of another sweep, by its stage and number there: its values in this space, its objective."""

    stage: str
    number: int
    values: dict[str, Any]
    value: float


class WarmStartEvent(TypedDict):
    """The samplers have been shown the trials of a finished sweep, whose folder `study.warm_start` names."""

    event: Literal["warm_start"]
    time: float
    folder: str
    trials: list[KnownTrial]


class BudgetEndEvent(TypedDict):
    """`study.budget` has ended a stage that would have gone on: "search" (both searches), "select" or "confirm".

    `number` counts the trials of each search, the rounds or the seeds. `spent` is what was spent then, `share_end` what
    may be spent at the end of the stage's share, in the budget's unit.
    """

    event: Literal["budget_end"]
    time: float
    stage: str
    number: int
    spent: float
    share_end: float


class MemoryRecord(TypedDict):
    """What a preflight check has measured: the device, the peak of the process's own memory, the peak that torch has
    reserved on the GPU, and the GPU's size; the last two are 0 without a GPU."""

    device: str
    process_bytes: int
    gpu_bytes: int
    gpu_total_bytes: int


class LatencyRecord(TypedDict):
    """What was measured of a student: the median time of a forward pass of one image, on which device."""

    latency_ms: float
    device: str
    threads: int


Measured = MemoryRecord | LatencyRecord


class LatencyEvent(LatencyRecord):
    """The latency of a student was measured; the three other fields of its config say which network it is."""

    event: Literal["latency"]
    time: float
    model: str
    head: str
    channels_last: bool


class FrontPoint(TypedDict):
    """A trial on a front: its objective with the search's seed and its cost; `confirmed` is its key there, or None."""

    candidate: str
    trial_id: str
    value: float
    cost: float
    confirmed: str | None


class FrontEvent(TypedDict):
    """The front of a search ("search" or "baselines") of a trade-off, the cheapest point first."""

    event: Literal["front"]
    time: float
    race: str
    cost: Literal["parameters", "flops", "latency_ms"]
    points: list[FrontPoint]


class JobEnd(TypedDict):
    """The state in which a job has ended, its objective at the best epoch, the reason, and the epochs that count.

    `traceback` names a file in the study's folder, if the job broke with one. `memory` is what a preflight check has
    measured, `attributes` what the pruner has kept in Optuna's system attributes of a searched trial. With a budget of
    time, `seconds` are those that this study has trained it, times its GPUs if the budget counts gpu_hours. `sha256` is
    that of pictures.npz, which the job "pictures" has written.
    """

    state: JobState
    value: float | None
    reason: str | None
    epochs: int
    traceback: NotRequired[str | None]
    memory: NotRequired[MemoryRecord]
    attributes: NotRequired[dict[str, Any]]
    seconds: NotRequired[float]
    sha256: NotRequired[str]


class EndedEvent(JobEnd):
    """A job has ended."""

    event: Literal["ended"]
    time: float
    stage: str
    number: int
    trial_id: str | None


class PlacedEvent(TypedDict):
    """An executor has decided where jobs run. `trials_per_gpu` is None without a GPU or with several for a trial."""

    event: Literal["placed"]
    time: float
    device: str
    trials_per_gpu: int | None
    trials_at_once: int


def chance_remark(best: Mapping[str, Any], data: Mapping[str, Any]) -> str | None:
    """Return a remark on a network that has learned nothing, or None.

    It has not if it names at most as many validation images rightly as their most frequent class has, and if its mean
    accuracy per class is no better either: between unequal classes a network may give up the most frequent one.

    Args:
        best: The metrics of the best epoch.
        data: A DataSummary; those of earlier versions lack the counts, and there is no remark.
    """
    most, images = data.get("val_most_frequent"), data.get("val")
    if most is None or not images or round(best["val/accuracy"] * images) > most:
        return None
    mpa, classes = best.get("val/mpa"), data.get("val_classes")
    if mpa is not None and classes and mpa * classes > 1 + 1e-6:
        return None
    return (
        f"not better than the most frequent class ({most / images:.2%} of the validation images): nothing was learned"
    )
