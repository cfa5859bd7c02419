"""The house's floors: an arrow points down only. Read from the sources, nothing is imported."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FLOORS = [
    {"methods", "models", "distiller", "ranks", "streams", "fields", "errors"},
    {"config", "data", "teacher", "store", "files", "distant", "shared", "identity"},
    {
        "run",
        "training",
        "checks",
        "outcome",
        "predictions",
        "loop",
        "feed",
        "answers",
        "keeping",
        "kept",
        "cached_answers",
        "progress",
        "averaging",
        "optim",
        "learner",
        "evaluate",
        "pictures",
        "environment",
        "torchrun",
        "__main__",
    },
    {
        "cluster",
        "job",
        "describe",
        "cost",
        "study",
        "search",
        "record",
        "bell",
        "quick_imports",
        "launch",
        "execute",
        "resources",
        "terminal",
        "command",
        "plan",
    },
]
FLOOR_OF = {room: number for number, floor in enumerate(FLOORS) for room in floor}
SOURCES = sorted([*(ROOT / "kdtrain").rglob("*.py"), *(ROOT / "analysis").rglob("*.py"), ROOT / "run_sweep.py"])
STANDARD_ONLY = ("kdtrain/errors.py", "kdtrain/files.py", "kdtrain/store.py")


def named(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere in it, as dotted names; `from a import b` is a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{named(path)}:{node.lineno}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str | None:
    """`kdtrain.config.space.Label` -> `config`; None for what is not of kdtrain."""
    package, _, rest = module.partition(".")
    return rest.split(".")[0] if package == "kdtrain" and rest else None


def importers(package: str) -> set[str]:
    """The files that import a package anywhere, in a function too."""
    return {named(path) for path in SOURCES if any(module.split(".")[0] == package for module in imports(path))}


def test_every_room_of_kdtrain_stands_on_one_floor() -> None:
    files = [path.relative_to(ROOT / "kdtrain") for path in SOURCES if named(path).startswith("kdtrain/")]
    rooms = {path.parts[0].removesuffix(".py") for path in files}
    assert rooms - {"__init__"} - FLOOR_OF.keys() == set()
    assert sum(len(floor) for floor in FLOORS) == len(FLOOR_OF)


@pytest.mark.parametrize("path", [path for path in SOURCES if named(path).startswith("kdtrain/")], ids=named)
def test_arrows_point_down_only(path: Path) -> None:
    own = path.relative_to(ROOT / "kdtrain").parts[0].removesuffix(".py")
    upwards = {
        other for other in map(room, imports(path)) if other in FLOOR_OF and FLOOR_OF[other] > FLOOR_OF.get(own, 0)
    }
    assert upwards == set(), f"{named(path)} reaches up to {sorted(upwards)}"


def test_kdtrain_does_not_know_analysis_but_for_the_command_that_calls_the_report() -> None:
    assert {name for name in importers("analysis") if name.startswith("kdtrain/")} <= {"kdtrain/command.py"}


def test_ray_is_imported_in_two_files() -> None:
    assert importers("ray") == {"kdtrain/launch.py", "kdtrain/execute.py", "kdtrain/job.py"}


def test_optuna_is_imported_by_search_space_and_analysis_only() -> None:
    outside = {name for name in importers("optuna") if not name.startswith("analysis/")}
    assert outside <= {"kdtrain/search.py", "kdtrain/config/space.py"}


def test_analysis_needs_of_kdtrain_only_errors_files_and_store_and_no_torch() -> None:
    own = [path for path in SOURCES if named(path).startswith("analysis/")]
    assert own
    assert {room(module) for path in own for module in imports(path)} - {None} <= {"errors", "files", "store"}
    assert not {name for name in importers("torch") | importers("torchvision") if name.startswith("analysis/")}


@pytest.mark.parametrize("name", STANDARD_ONLY)
def test_what_analysis_imports_needs_the_standard_library_only(name: str) -> None:
    import sys

    others = {module.split(".")[0] for module in imports(ROOT / name)} - {"kdtrain"}
    assert others <= sys.stdlib_module_names


def method_names() -> set[str]:
    """The `name: Literal[...]` of every class in methods/."""
    names = set()
    for path in (ROOT / "kdtrain" / "methods").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "name":
                assert isinstance(node.annotation, ast.Subscript)
                names.add(ast.literal_eval(node.annotation.slice))
    return names


def test_nothing_compares_a_methods_name_outside_methods_and_config() -> None:
    """But for the five documents, whose tables call methods by names of their own."""
    names = method_names()
    assert names >= {"none", "kd"}
    found = []
    for path in SOURCES:
        if named(path).startswith(("kdtrain/methods/", "kdtrain/config/", "analysis/documents/")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            # a pruner and an augmentation are called "none" too
            text = ast.unparse(node) if isinstance(node, ast.Compare | ast.match_case) else ""
            constants = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)} if text else set()
            if (constants & (names - {"none"})) or ("none" in constants and "method" in text):
                found.append(f"{named(path)}: {text}")
    assert found == []
