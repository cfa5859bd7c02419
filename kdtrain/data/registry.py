"""The shipped data sets. A new one is a module in this package, a name in `AnyData`, and a test."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated

from pydantic import Field

from kdtrain.data.base import Dataset
from kdtrain.data.cifar10 import Cifar10
from kdtrain.data.cub200 import Cub200
from kdtrain.data.digits import Digits
from kdtrain.data.download import download
from kdtrain.data.flowers102 import Flowers102
from kdtrain.data.hymenoptera import Hymenoptera
from kdtrain.data.image_folder import ImageFolder
from kdtrain.data.mnist import Mnist

AnyData = Digits | Mnist | Cifar10 | Hymenoptera | Cub200 | Flowers102 | ImageFolder
Data = Annotated[AnyData, Field(discriminator="name")]


def data_folder(chosen: str | Path | None) -> Path:
    """Return the folder for the value of --data: a URL is downloaded; None: KDTRAIN_DATA, or ~/.cache/kdtrain/data."""
    if "://" in str(chosen):
        return download(str(chosen))
    return Path(chosen or os.environ.get("KDTRAIN_DATA") or "~/.cache/kdtrain/data").expanduser().absolute()


@lru_cache(maxsize=2)
def load(config: AnyData, root: Path) -> Dataset:
    """Return the data set of a recipe, read once per process. Raises UserError if files are absent or damaged."""
    return config.load(root)
