"""The command `kdtrain`: imports the module of the sub-command only, so that --help needs neither torch nor Ray."""

import importlib
import os
import sys
from pathlib import Path

import kdtrain

COMMANDS = {
    "sweep": "run a sweep, or continue it: one YAML file in, one report out",
    "plan": "print a sweep's stages, space, networks and an upper bound of its cost",
    "check": "validate a sweep file",
    "train": "train one recipe in this process, or in those that torchrun starts",
    "report": "write a sweep's report again, or the overview of all sweeps in a folder",
    "cluster": "run a sweep on a cluster that `ray up` has started",
    "schema": "print the JSON schema of a sweep file, for editors",
    "example": "list the shipped sweeps and recipes, or print one",
}
USAGE = """usage: kdtrain COMMAND ...
       kdtrain RECIPE.yaml ...    the same as kdtrain train RECIPE.yaml ..."""


def main(arguments: list[str] | None = None) -> int:
    """Run a sub-command with the words after `kdtrain`, by default those of this process; return the exit code.

    0: done; 1: no result, or the training failed; 2: the user has something to correct; 130: interrupted.
    """
    try:
        code = _dispatch(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe has gone, such as `head`; Python must not flush again at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except OSError as error:
        print(f"kdtrain: the output cannot be written ({error.strerror or error})", file=sys.stderr)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 2
    return code


def _dispatch(words: list[str]) -> int:
    first = words[0] if words else ""
    if first in ("-h", "--help"):
        print(_help())
        return 0
    if first == "--version":
        print(f"kdtrain {kdtrain.__version__}")
        return 0
    if first in COMMANDS:
        return _run(first, words[1:])
    if first.startswith("-") or first.endswith((".yaml", ".yml", ".json")) or Path(first).is_file():
        return _run("train", words)  # an absent file, too: `train` reports it once for all processes of torchrun
    problem = f"kdtrain: {first} is neither a command nor a recipe file" if first else "kdtrain: a command is missing"
    print(f"{problem}; commands: {', '.join(COMMANDS)}", file=sys.stderr)
    return 2


def _help() -> str:
    width = max(map(len, COMMANDS))
    commands = "\n".join(f"  {name:{width}}  {meaning}" for name, meaning in COMMANDS.items())
    return f"{USAGE}\n\ncommands:\n{commands}\n\nkdtrain COMMAND --help describes a command."


def _run(command: str, words: list[str]) -> int:
    code: int = importlib.import_module(f"kdtrain.cli.{command}").main(words)
    return code
