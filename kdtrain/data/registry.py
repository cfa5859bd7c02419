"""Data sets. A new one is a file here, a line in `Data` and a test."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from kdtrain.data.base import Dataset
from kdtrain.data.cifar10 import Cifar10
from kdtrain.data.cub200 import Cub200
from kdtrain.data.digits import Digits
from kdtrain.data.download import fetched
from kdtrain.data.flowers102 import Flowers102
from kdtrain.data.hymenoptera import Hymenoptera
from kdtrain.data.image_folder import ImageFolder
from kdtrain.data.mnist import Mnist

AnyData = Digits | Mnist | Cifar10 | Hymenoptera | Cub200 | Flowers102 | ImageFolder
Data = Annotated[AnyData, Field(discriminator="name")]


def data_folder(chosen: str | Path | None) -> Path:
    """Where data sets lie: --data DIR, else KDTRAIN_DATA, else ~/.cache/kdtrain/data. Of a URL the folder that this
    machine has fetched it into; see fetch.py for what it raises."""
    if "://" in str(chosen):
        return fetched(str(chosen))
    return Path(chosen or os.environ.get("KDTRAIN_DATA") or "~/.cache/kdtrain/data").expanduser().absolute()


@lru_cache(maxsize=2)
def load(config: AnyData, root: Path) -> Dataset:
    """The data set of a recipe, read once per process; raises UserError where it is absent."""
    return config.load(root)
