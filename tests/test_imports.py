"""The direction of imports: an arrow points down only. Read from the sources, nothing is imported."""

import ast
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEVELS = [
    {"__init__", "__main__", "cluster"},
    {"cli"},
    {"api"},
    {"executors"},
    {"study", "visualization"},
    {"training"},
    {"teacher"},
    {"trials"},
    {"config"},
    {"data", "methods", "models"},
    {"storage", "runtime"},
    {"errors", "base_config"},
]
"""Packages and modules of kdtrain, from the top down: each may import what stands below it, and itself."""
LEVEL_OF = {package: number for number, level in enumerate(LEVELS) for package in level}
SOURCES = sorted([*(ROOT / "kdtrain").rglob("*.py"), *(ROOT / "analysis").rglob("*.py"), ROOT / "run_sweep.py"])
ANALYSIS_MAY_IMPORT = {
    "kdtrain.errors",
    "kdtrain.storage.folder",
    "kdtrain.storage.sealed",
    "kdtrain.trials.arrays",
    "kdtrain.trials.objectives",
    "kdtrain.trials.records",
    "kdtrain.trials.store",
}


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


def package_of(module: str) -> str | None:
    """`kdtrain.config.space.Label` -> `config`; None if it is not of kdtrain."""
    top, _, rest = module.partition(".")
    return rest.split(".")[0] if top == "kdtrain" and rest else None


def importers(package: str) -> set[str]:
    """The files that import a package anywhere, in a function too."""
    return {named(path) for path in SOURCES if any(module.split(".")[0] == package for module in imports(path))}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def imported_modules(path: Path, known: set[str]) -> set[str]:
    """The modules of `known` that a file imports, in functions too."""
    names = {name for module in imports(path) for name in (module, module.rpartition(".")[0])}
    return names & known - {module_name(path)}


def test_every_package_has_a_level_and_the_top_level_has_at_most_six_modules() -> None:
    paths = [path.relative_to(ROOT / "kdtrain") for path in SOURCES if named(path).startswith("kdtrain/")]
    assert {path.parts[0].removesuffix(".py") for path in paths} <= LEVEL_OF.keys()
    assert sum(len(path.parts) == 1 for path in paths) <= 6
    assert sum(map(len, LEVELS)) == len(LEVEL_OF)
    assert len(LEVELS) <= 12


@pytest.mark.parametrize("path", [path for path in SOURCES if named(path).startswith("kdtrain/")], ids=named)
def test_a_package_imports_only_packages_below_it(path: Path) -> None:
    own = path.relative_to(ROOT / "kdtrain").parts[0].removesuffix(".py")
    others = {package_of(module) for module in imports(path)} - {None, own}
    assert {other for other in others if LEVEL_OF[other] <= LEVEL_OF[own]} == set()


def test_no_modules_import_one_another_in_a_circle() -> None:
    known = {module_name(path) for path in SOURCES}
    graph = {module_name(path): imported_modules(path, known) for path in SOURCES}
    list(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_init_files_import_nothing() -> None:
    """So a module of a package can be imported without its siblings, and without torch."""
    own = [path for path in SOURCES if path.name == "__init__.py" and path.parent != ROOT / "kdtrain"]
    assert own
    assert {named(path) for path in own if list(imports(path))} == set()


def test_analysis_is_imported_by_the_commands_and_the_api_only() -> None:
    own = {name for name in importers("analysis") if name.startswith("kdtrain/")}
    assert own == {"kdtrain/cli/report.py", "kdtrain/api/results.py", "kdtrain/api/sweeps.py"}


def test_ray_is_imported_by_executors_only() -> None:
    assert importers("ray") == {f"kdtrain/executors/ray_{name}.py" for name in ("cluster", "job", "tune", "worker")}


def test_signals_and_descriptors_are_set_by_the_commands_only() -> None:
    """The connection to Ray restores handlers that Ray has replaced; a loader's own processes ignore Ctrl-C."""
    restoring, children = "kdtrain/executors/ray_cluster.py", "kdtrain/training/loader.py"
    assert importers("signal") <= {"kdtrain/cli/common.py", restoring, children}
    assert {named(path) for path in SOURCES if "os.dup2" in path.read_text()} == {
        "kdtrain/cli/display.py",
        "kdtrain/cli/main.py",
    }


def test_optuna_is_imported_by_search_space_and_analysis_only() -> None:
    outside = {name for name in importers("optuna") if not name.startswith("analysis/")}
    own_classes = {"kdtrain/study/optuna_parts.py", "kdtrain/study/optuna_study.py", "kdtrain/config/search_checks.py"}
    assert outside <= {"kdtrain/study/search.py", "kdtrain/config/space.py", *own_classes}


def test_analysis_needs_of_kdtrain_only_errors_files_and_store_and_no_torch() -> None:
    own = [path for path in SOURCES if named(path).startswith("analysis/") and path.name != "__main__.py"]
    assert own
    known = {module_name(path) for path in SOURCES}
    of_kdtrain = {name for path in own for name in imported_modules(path, known) if name.startswith("kdtrain.")}
    assert of_kdtrain <= ANALYSIS_MAY_IMPORT
    assert not {name for name in importers("torch") | importers("torchvision") if name.startswith("analysis/")}


@pytest.mark.parametrize("module", sorted(ANALYSIS_MAY_IMPORT))
def test_what_analysis_imports_of_kdtrain_needs_the_standard_library_only_and_numpy_for_arrays(module: str) -> None:
    names = set(imports((ROOT / module.replace(".", "/")).with_suffix(".py")))
    of_kdtrain = {name for name in names if name.startswith("kdtrain.")}
    assert {name.rpartition(".")[0] for name in of_kdtrain} <= ANALYSIS_MAY_IMPORT
    allowed = {*sys.stdlib_module_names, *(["numpy"] if module == "kdtrain.trials.arrays" else [])}
    assert {name.split(".")[0] for name in names - of_kdtrain} <= allowed


def method_names() -> set[str]:
    """The `name: Literal[...]` of every class in methods/."""
    names = set()
    for path in (ROOT / "kdtrain" / "methods").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "name":
                assert isinstance(node.annotation, ast.Subscript)
                names.add(ast.literal_eval(node.annotation.slice))
    return names


def test_no_module_of_a_method_imports_another_methods() -> None:
    """A trial's identity has the code of its own method's module only; shared ones are covered by NUMERICS."""
    folder = ROOT / "kdtrain" / "methods"
    registered = {name for name in imports(folder / "registry.py") if name.startswith("kdtrain.methods.")}
    modules = {name.rpartition(".")[0] for name in registered} - {"kdtrain.methods.loss_weights"}
    assert {"kdtrain.methods.kd", "kdtrain.methods.dkd"} <= modules
    for module in modules:
        path = folder / f"{module.rpartition('.')[2]}.py"
        assert imported_modules(path, modules) == set(), named(path)


def test_nothing_compares_a_methods_name_outside_methods_and_config() -> None:
    """But for the five documents, whose tables call methods by names of their own."""
    names = method_names()
    assert names >= {"none", "kd"}
    found = []
    for path in SOURCES:
        if named(path).startswith(("kdtrain/methods/", "kdtrain/config/", "analysis/references/")):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            # a pruner and an augmentation are called "none" too
            text = ast.unparse(node) if isinstance(node, ast.Compare | ast.match_case) else ""
            constants = {each.value for each in ast.walk(node) if isinstance(each, ast.Constant)} if text else set()
            if (constants & (names - {"none"})) or ("none" in constants and "method" in text):
                found.append(f"{named(path)}: {text}")
    assert found == []
