"""Classes that a file names as `module:Class`, imported from the user's folders or from the installed packages."""

import difflib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from kdtrain.errors import shortened

BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def load_class(name: str, base: type, folders: Sequence[Path]) -> type:
    """Return the class that `module:Class` names.

    Args:
        name: The module, with dots if it is inside a package, and the class.
        base: What it must be a subclass of.
        folders: Where the module is looked for before the installed packages. They are importable while it is imported.

    Raises:
        ValueError: A sentence that says what is wrong: no such module, an error in it, no such class, another base.
    """
    module_name, _, class_name = name.partition(":")
    module = _import_module(module_name, folders)
    found = getattr(module, class_name, None)
    place = f"{module_name} ({getattr(module, '__file__', None) or 'built in'})"
    if found is None:
        classes = [key for key, value in vars(module).items() if isinstance(value, type) and issubclass(value, base)]
        near = difflib.get_close_matches(class_name, classes, n=1)
        hint = f"; choices: {', '.join(classes)}" if classes else ""
        raise ValueError(
            f"{place} has no class '{shortened(class_name)}'{hint}{f'; nearest: {near[0]}' if near else ''}"
        )
    if not isinstance(found, type) or not issubclass(found, base):
        bases = [each.__name__ for each in found.__bases__] if isinstance(found, type) else []
        got = f"a subclass of {', '.join(bases)}" if bases else f"{found!r:.80}"
        raise ValueError(f"must be a subclass of {_public_name(base)}, got {got}")
    if inspect.isabstract(found):
        missing = sorted(name for name in dir(found) if getattr(getattr(found, name), "__isabstractmethod__", False))
        raise ValueError(f"{class_name} lacks methods: {', '.join(missing)}")
    return found


def argument_problems(found: type, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield (argument, sentence) for each argument that the constructor does not have, and for each that it lacks."""
    parameters = inspect.signature(found).parameters
    names = argument_names(found)
    for key in arguments:
        if names is not None and key not in names:
            near = difflib.get_close_matches(key, names, n=1)
            hint = f"; nearest: {near[0]}" if near else f"; it has: {', '.join(names) or 'nothing'}"
            yield key, f"{found.__name__} has no '{shortened(key)}'{hint}"
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind in BY_NAME
        if required and key not in arguments:
            yield key, f"is missing: an argument of {found.__name__}"


def argument_names(found: type) -> list[str] | None:
    """Return the names of a constructor's arguments, or None if it takes any."""
    parameters = inspect.signature(found).parameters.values()
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return None
    return [each.name for each in parameters if each.kind in BY_NAME]


def error_text(error: BaseException, file: str | None = None) -> str:
    """Return an error as one line; `file` adds the line of that file in which it arose."""
    text = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    if isinstance(error, SyntaxError) or not lines:
        return text[:200]
    return f"{text[:200]} (line {lines[-1]})"


def _import_module(name: str, folders: Sequence[Path]) -> ModuleType:
    top = name.partition(".")[0]
    with _importable(folders):
        importlib.invalidate_caches()  # a file may have been written a moment ago
        spec = importlib.util.find_spec(top) if top not in sys.modules else PathFinder.find_spec(top)
        if spec is None and top not in sys.modules:
            looked = ", ".join(dict.fromkeys(str(folder.absolute()) for folder in folders))
            raise ValueError(
                f"there is no module {shortened(top)}, neither in {looked} nor among the installed packages"
            )
        origin = spec.origin if spec is not None else None
        known = getattr(sys.modules.get(top), "__file__", origin)
        if origin != known:
            raise ValueError(f"{top} is imported already, from {known}, and would be {origin} here; rename one of them")
        try:
            return importlib.import_module(name)
        except (Exception, SystemExit) as error:
            raise ValueError(f"{name} ({origin}) cannot be imported: {error_text(error, origin)}") from None


@contextmanager
def _importable(folders: Sequence[Path]) -> Iterator[None]:
    """Put folders before all other places of modules for a while."""
    before = list(sys.path)
    sys.path[:0] = [str(folder.absolute()) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def _public_name(base: type) -> str:
    """Return `optuna.samplers.BaseSampler` for a class that is defined in optuna.samplers._base."""
    return ".".join([part for part in base.__module__.split(".") if not part.startswith("_")] + [base.__name__])
