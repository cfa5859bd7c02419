"""kdtrain example [NAME]: the sweeps and recipes that kdtrain ships, listed or printed."""

import argparse
from difflib import get_close_matches
from pathlib import Path

import kdtrain
from kdtrain.cli.common import guarded
from kdtrain.errors import UserError

KINDS = ("sweeps", "recipes")


def main(arguments: list[str] | None = None) -> int:
    """Return exit code 0 if the list or the example is printed, 2 for an unknown name."""
    parser = argparse.ArgumentParser(
        prog="kdtrain example",
        description="Lists the shipped sweeps and recipes, or prints one: kdtrain example digits_kd > my.yaml",
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="such as digits_kd or recipes/mnist_kd")
    name: str | None = parser.parse_args(arguments).name
    return guarded(lambda: _print(name))


def shipped() -> dict[str, Path]:
    """Return the shipped files by name, such as "sweeps/digits_kd"; sweeps first.

    The wheel has them in `kdtrain/shipped`, a clone beside the package.
    """
    package = Path(kdtrain.__file__).parent
    root = package / "shipped" if (package / "shipped").is_dir() else package.parent
    return {f"{kind}/{file.stem}": file for kind in KINDS for file in sorted((root / kind).glob("*.yaml"))}


def _print(name: str | None) -> int:
    files = shipped()
    if name is None:
        print("\n".join(files))
        return 0
    asked = name.removesuffix(".yaml")
    key = next((key for key in (asked, *(f"{kind}/{asked}" for kind in KINDS)) if key in files), None)
    if key is None:
        names = list(dict.fromkeys([*(each.partition("/")[2] for each in files), *files]))
        nearest = get_close_matches(asked, names, n=1, cutoff=0.0)
        raise UserError(f"example: {name}: there is no such example; nearest: {nearest[0]}; kdtrain example lists all")
    print(files[key].read_text(), end="")
    return 0
