"""One room per method. A new one is a file here, a line in `Method` and a test."""

from typing import Annotated

from pydantic import Field

from kdtrain.methods.base import Batch, Criterion, Outputs, Setting, Term, weighted_sum
from kdtrain.methods.kd import Kd
from kdtrain.methods.none import NoDistillation

Method = Annotated[NoDistillation | Kd, Field(discriminator="name")]

__all__ = ["Batch", "Criterion", "Method", "Outputs", "Setting", "Term", "weighted_sum"]
