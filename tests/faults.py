"""A fault in the trainings of other processes."""

import os
from pathlib import Path

SITECUSTOMIZE = """
import importlib.util, os, sys

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name != "kdtrain.training.loop":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        execute = spec.loader.exec_module

        def faulty(module):
            execute(module)
            step = module.train_step

            def train_step(state, *arguments):
                if os.path.exists({file!r}) and state.recipe.teacher and state.epoch == 1:
                    raise RuntimeError("the device was lost")
                return step(state, *arguments)

            module.train_step = train_step

        spec.loader.exec_module = faulty
        return spec

sys.meta_path.insert(0, Finder())
"""
"""A sitecustomize.py with which each training of a distilled student raises in epoch 2 while `file` is there."""


def faulty(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return (file, environment): processes of this environment have the fault while the file is there.

    It is there at first.
    """
    file = folder / "fault"
    (folder / "sitecustomize.py").write_text(SITECUSTOMIZE.format(file=str(file)))
    file.touch()
    return file, os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
