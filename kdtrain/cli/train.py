"""kdtrain train RECIPE.yaml: one recipe without Ray, in this process or in all processes that torchrun starts."""

import argparse
import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import TYPE_CHECKING

from kdtrain.cli.common import Interruption, add_data, add_results
from kdtrain.config.problems import format_value
from kdtrain.errors import UserError
from kdtrain.runtime.torchrun import Group
from kdtrain.storage.folder import locked

if TYPE_CHECKING:
    import torch

    from kdtrain.config.recipe import Recipe
    from kdtrain.training.epoch_metrics import Metrics
    from kdtrain.trials.records import BestEpoch
    from kdtrain.trials.workspace import Workspace

SHOWN = ("train/loss", "val/accuracy", "val/nll")
BOUNDS = {"threads": (1, 1024), "checkpoint_every_steps": (1, 10**9), "loaders": (0, 64)}
COMPILED = "kdtrain-compiled-"


def main(arguments: list[str] | None = None) -> int:
    """Return exit code 0: trained; 1: the training failed; 2: the user has something to correct; 130: interrupted."""
    group = Group()
    if group.is_main:
        chosen = _parser().parse_args(arguments)
    else:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            chosen = _parser().parse_args(arguments)
    # torchrun sends SIGTERM if another process has failed, which reports that itself: it ends this one at once
    signals = nullcontext() if group.launched else Interruption()
    try:
        with signals:
            return _train(chosen, group)
    except UserError as error:
        group.print_error("\n".join(error.problems))
        return 2
    except KeyboardInterrupt:
        group.print_error("stopped; the same command continues from the newest checkpoint")
        return 130
    except RuntimeError:  # of the connection, if the process at its other end has reported its error and gone
        if group.has_failed():
            return 2
        raise


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kdtrain train",
        description="Trains one recipe, and before it its teacher, without Ray. On several processes: "
        "torchrun --nproc-per-node 2 -m kdtrain RECIPE.yaml",
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="a plain recipe, such as a sweep's best.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="such as epochs=3 or data.resolution=64"
    )
    add_results(parser)
    add_data(parser)
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads of each process; another number changes float rounding"
    )
    parser.add_argument("--device", help="such as cpu, cuda or mps (default: the GPU if there is one)")
    help_text = "checkpoints within epochs, too (default: after each epoch, large ones less often)"
    parser.add_argument("--checkpoint-every-steps", type=int, metavar="N", help=help_text)
    parser.add_argument(
        "--loaders", type=int, default=0, metavar="N", help="processes that read and augment images (default: none)"
    )
    return parser


def _train(chosen: argparse.Namespace, group: Group) -> int:
    for option, (least, most) in BOUNDS.items():
        number = getattr(chosen, option)
        if number is not None and not least <= number <= most:
            bound = f"at least {least}" if number < least else f"at most {most}"
            raise UserError(f"--{option.replace('_', '-')}: must be {bound}, got {format_value(number)}")
    import torch

    from kdtrain.config.sweep import load_located_recipe, located_recipe_error

    recipe, located = load_located_recipe(Path(chosen.recipe), chosen.set)
    torch.set_num_threads(chosen.threads)
    device = group.device(chosen.device)
    try:
        with _compiler_folder(), group.process_group(device):
            return _train_parts(recipe, chosen, device, group)
    except UserError as error:
        raise located_recipe_error(located, error) from None


@contextmanager
def _compiler_folder() -> Iterator[None]:
    """Give torch's compiler a temporary folder, and remove those that killed processes have left."""
    from kdtrain.runtime.process import compile_into

    for left in Path(gettempdir()).glob(f"{COMPILED}*"):
        with suppress(OSError), locked(left, wait=False):  # a process that still runs holds the lock of its own
            shutil.rmtree(left)
    with TemporaryDirectory(prefix=COMPILED, ignore_cleanup_errors=True) as folder, locked(Path(folder), wait=True):
        compile_into(Path(folder))
        yield


def _train_parts(recipe: "Recipe", chosen: argparse.Namespace, device: "torch.device", group: Group) -> int:
    """Train the recipe's teachers that are to be trained, then its student, and print their numbers."""
    from kdtrain.api.training import parts_of, train_part
    from kdtrain.data.notes import data_notes
    from kdtrain.data.registry import data_folder
    from kdtrain.runtime.device import device_name
    from kdtrain.storage.mirror import results_folder
    from kdtrain.training.preflight import check_before_teacher
    from kdtrain.trials.identity import require_weights_files
    from kdtrain.trials.store import Store
    from kdtrain.trials.workspace import Workspace

    workspace = Workspace(Store(results_folder(chosen.results)), data_folder(chosen.data), device)

    def show(metrics: "Metrics") -> None:
        shown = [name for name in dict.fromkeys((*SHOWN, recipe.objective)) if name in metrics]  # a critic has no loss
        numbers = "  ".join(f"{name} {metrics[name]:.4f}" for name in shown)
        skipped = f"  {metrics['skipped_steps']:.0f} steps overflowed" if metrics.get("skipped_steps") else ""
        group.print_once(f"epoch {metrics['epoch']:>4}  {numbers}  {metrics['seconds']:.1f} s{skipped}")

    for note in data_notes(workspace.dataset(recipe.data)):
        group.print_once(f"note: {note}")
    require_weights_files(recipe)
    check_before_teacher(recipe, workspace)
    _print_weights(recipe, workspace, group)
    options = {"checkpoint_every_steps": chosen.checkpoint_every_steps, "loaders": chosen.loaders}
    for title, part in parts_of(recipe):
        about = f"{part.student.model} on {part.data.name}, {part.epochs} epochs, seed {part.seed}"
        group.print_once(f"{title}: {about}, device {device_name(device)}")
        outcome = train_part(part, workspace, show, **options)
        if outcome["state"] != "complete":
            group.print_error(f"{title}: {outcome['state']}: {outcome['reason']}")
            return 1
        best, test = outcome["best"], outcome["test"]
        assert best is not None
        assert test is not None
        group.print_once(
            f"{title}: best epoch {best['epoch']}: val accuracy {best['val/accuracy']:.4f}; "
            f"test accuracy {test['test/accuracy']:.4f}, test nll {test['test/nll']:.4f} ({test['images']} images)"
            + (f"; with ten crops {test['test_tta/accuracy']:.4f}" if "test_tta/accuracy" in test else "")
        )
        _print_chance(title, best, part, workspace, group)
    return 0


def _print_weights(recipe: "Recipe", workspace: "Workspace", group: Group) -> None:
    """Print which weights are taken of files, and the accuracy of each finished teacher."""
    from kdtrain.config.needed_trainings import chain, recipes_by_teacher
    from kdtrain.study.description import networks_of, weights_remark, weights_taken
    from kdtrain.training.teacher_evaluation import evaluate_teacher

    for row in weights_taken(networks_of(recipe), len(workspace.dataset(recipe.data).classes)):
        group.print_once(weights_remark(row))
    for each in (by_teacher for needed in chain(recipe) for by_teacher in recipes_by_teacher(needed)):
        (teacher,) = each.teachers
        if teacher.trained is not None:
            best = evaluate_teacher(each, workspace)["best"]
            assert best is not None
            name = f"teacher: {teacher.model} from {teacher.trained}"
            group.print_once(f"{name}: val accuracy {best['val/accuracy']:.4f}")
            _print_chance("teacher", best, each, workspace, group)


def _print_chance(title: str, best: "BestEpoch", recipe: "Recipe", workspace: "Workspace", group: Group) -> None:
    from kdtrain.trials.records import chance_remark

    remark = chance_remark(best, workspace.dataset(recipe.data).summary())
    if remark is not None:
        group.print_once(f"{title}: {remark}")
