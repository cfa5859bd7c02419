"""The union of all method configs. A new method is a module in this package, a line in `Method` and a test."""

from typing import Annotated, get_args

from pydantic import Field

from kdtrain.methods.at import At
from kdtrain.methods.dist import Dist
from kdtrain.methods.dkd import Dkd
from kdtrain.methods.kd import Kd
from kdtrain.methods.logit_mse import LogitMse
from kdtrain.methods.logits_discriminator import LogitsDiscriminator
from kdtrain.methods.loss_weights import LossWeights
from kdtrain.methods.mgd import Mgd
from kdtrain.methods.none import NoDistillation
from kdtrain.methods.rkd import RkdAngle, RkdDistance
from kdtrain.methods.sp import Sp

Method = Annotated[
    NoDistillation | Kd | LogitMse | RkdDistance | RkdAngle | LogitsDiscriminator | At | Sp | Mgd | Dkd | Dist,
    Field(discriminator="name"),
]


def loss_weights_of(method_name: object) -> type[LossWeights]:
    """Return the class of a method's `balance`, or LossWeights if there is no method of this name."""
    union, *_ = get_args(Method)
    for method in get_args(union):
        field = method.model_fields.get("balance")
        if field is not None and get_args(method.model_fields["name"].annotation) == (method_name,):
            kind: type[LossWeights] = field.annotation
            return kind
    return LossWeights
