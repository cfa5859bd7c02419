"""The shipped data sets. A new one is a module in this package, a name in `AnyData`, and a test."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, get_args

from pydantic import Field

from kdtrain.data.base import Dataset
from kdtrain.data.cifar10 import Cifar10
from kdtrain.data.cub200 import Cub200
from kdtrain.data.digits import Digits
from kdtrain.data.download import download
from kdtrain.data.flowers102 import Flowers102
from kdtrain.data.hymenoptera import Hymenoptera
from kdtrain.data.image_folder import ImageFolder
from kdtrain.data.mnist import FashionMnist, Kmnist, Mnist
from kdtrain.data.training_split import prepared
from kdtrain.errors import UserError
from kdtrain.storage.folder import user_path
from kdtrain.storage.remote import require_url

AnyData = Digits | Mnist | FashionMnist | Kmnist | Cifar10 | Hymenoptera | Cub200 | Flowers102 | ImageFolder
Data = Annotated[AnyData, Field(discriminator="name")]
for _config in get_args(AnyData):  # each may have any other one as `transfer`
    _config.model_rebuild(_types_namespace={"Transfer": Data})


def named_data(chosen: str | Path | None) -> str | None:
    """Return the folder or URL of the data sets as it is named: `chosen`, or the variable KDTRAIN_DATA, or None.

    Raises:
        UserError: `chosen` is empty, as it is if a shell's variable is not set, or a URL that contains a secret.
    """
    if chosen is not None and not str(chosen):
        raise UserError("--data: must name a folder or a URL, got nothing")
    place = str(chosen) if chosen is not None else os.environ.get("KDTRAIN_DATA") or None
    if place is not None and "://" in place:
        require_url(place, "--data")
    return place


def data_folder(chosen: str | Path | None) -> Path:
    """Return the folder of the data sets that `chosen` or KDTRAIN_DATA names; ~/.cache/kdtrain/data if neither does.

    A URL is downloaded.

    Raises:
        UserError: The name is empty, `~name` of an unknown user, or a URL that cannot be downloaded.
    """
    place = named_data(chosen) or "~/.cache/kdtrain/data"
    return download(place) if "://" in place else user_path(place, "--data").absolute()


@lru_cache(maxsize=4)  # those of a student and of its teachers
def load(config: AnyData, root: Path) -> Dataset:
    """Return the data set of a recipe, read once per process; see `prepared` for errors."""
    return prepared(config, root)
