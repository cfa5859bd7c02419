"""python -m kdtrain RECIPE.yaml: one recipe in one process, without Ray. The same `fit` as in a sweep."""

import argparse
import sys
from pathlib import Path

from kdtrain.errors import UserError


def main(arguments: list[str] | None = None) -> int:
    """Exit code 0: trained; 1: the training failed; 2: something to mend in what was asked."""
    parser = argparse.ArgumentParser(prog="python -m kdtrain", description=__doc__)
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="a plain recipe, such as a sweep's best.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="such as epochs=3 or data.resolution=64"
    )
    parser.add_argument("--results", default="results", metavar="DIR", help="where trials are kept (default: results)")
    parser.add_argument("--data", metavar="DIR", help="where data sets lie (default: KDTRAIN_DATA)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; more of them change float rounding")
    parser.add_argument("--device", help="such as cpu or cuda (default: cuda where there is one)")
    chosen = parser.parse_args(arguments)
    try:
        return _train(chosen)
    except UserError as error:
        print("\n".join(error.problems), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the finished epochs are kept: the same command continues", file=sys.stderr)
        return 130


def _train(chosen: argparse.Namespace) -> int:
    if chosen.threads < 1:
        raise UserError(f"--threads: must be at least 1, got {chosen.threads}")
    import torch

    from kdtrain.config import load_recipe
    from kdtrain.config.recipe import teacher_recipe
    from kdtrain.data import data_folder
    from kdtrain.environment import prepare_process
    from kdtrain.loop import Metrics
    from kdtrain.run import check_before_teacher, read_test, train
    from kdtrain.store import Store, results_folder

    recipe = load_recipe(Path(chosen.recipe), chosen.set)
    prepare_process(chosen.threads)
    try:
        device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).tolist()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device: {chosen.device} cannot be used ({str(error).splitlines()[0]})") from None
    store, data_root = Store(results_folder(chosen.results)), data_folder(chosen.data)

    def show(metrics: Metrics) -> None:
        shown = ("train/loss", "val/accuracy", "val/nll")  # an epoch of the critic's turns alone has no loss
        numbers = "  ".join(f"{name} {metrics[name]:.4f}" for name in shown if name in metrics)
        print(f"epoch {metrics['epoch']:>4}  {numbers}  {metrics['seconds']:.1f} s", flush=True)

    check_before_teacher(recipe, store, data_root, device)
    stages = [("teacher", teacher_recipe(recipe)), (recipe.method.name, recipe)]
    for title, part in stages:
        if part is None:
            continue
        print(f"{title}: {part.student.model} on {part.data.name}, {part.epochs} epochs, seed {part.seed}", flush=True)
        try:
            outcome = train(part, store, data_root, device, final=True, on_epoch=show)
            if outcome["state"] == "complete":
                outcome = read_test(part, store, data_root, device)
        except OSError as error:
            if error.filename is None:
                raise
            raise UserError(
                f"{chosen.results}: cannot be written ({error.strerror}); name another folder with --results"
            ) from None
        if outcome["state"] != "complete":
            print(f"{title}: {outcome['state']}: {outcome['reason']}", file=sys.stderr)
            return 1
        best, test = outcome["best"], outcome["test"]
        print(
            f"{title}: best epoch {best['epoch']}: val accuracy {best['val/accuracy']:.4f}; "
            f"test accuracy {test['test/accuracy']:.4f}, test nll {test['test/nll']:.4f} ({test['images']} images)"
            + (f"; with ten crops {test['test_tta/accuracy']:.4f}" if "test_tta/accuracy" in test else "")
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
