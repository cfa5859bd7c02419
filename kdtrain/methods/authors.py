"""The weight of each method's distillation term, and the values without a default, as its authors give them.

The other values are the defaults of the methods' configs. They stand here and not in the methods' modules, whose code
is part of a trial's identity.
"""

import json
from collections.abc import Mapping
from typing import Any, get_args

from kdtrain.methods.at import At
from kdtrain.methods.base import MethodConfig
from kdtrain.methods.dist import Dist
from kdtrain.methods.dkd import Dkd
from kdtrain.methods.kd import Kd
from kdtrain.methods.logit_mse import LogitMse
from kdtrain.methods.logits_discriminator import LogitsDiscriminator
from kdtrain.methods.loss_weights import LossWeights
from kdtrain.methods.mgd import Mgd
from kdtrain.methods.rkd import RkdAngle, RkdDistance
from kdtrain.methods.sp import Sp

AUTHORS_VALUES: Mapping[type[MethodConfig], Mapping[str, Any]] = {
    # Hinton et al. give no weights; those of Tian, Krishnan & Isola 2020 (arXiv:1910.10699), section 4, which later
    # papers took over: temperature 4, 0.9 of the soft and 0.1 of the hard targets.
    Kd: {"balance": {"alpha": 0.9}, "temperature": 4.0},
    # The code of setup 2 (anvelezec/distillation).
    LogitMse: {"balance": {"alpha_ce": 0.5}},
    # beta of the authors' code; the losses of two stages are summed, each as a mean over positions.
    At: {"balance": {"weight": 1000.0}},
    # gamma of the paper, section 4.1.
    Sp: {"balance": {"weight": 3000.0}},
    # lambda of the paper for classification.
    RkdDistance: {"balance": {"weight": 25.0}},
    RkdAngle: {"balance": {"weight": 50.0}},
    # alpha and lambda of the paper for classification are the defaults, beside a cross-entropy of weight 1.
    Mgd: {"balance": {"weight": 1.0}},
    # alpha and beta of the paper are the defaults, beside a cross-entropy of weight 1.
    Dkd: {"balance": {"weight": 1.0}},
    # beta and gamma of the paper, 2 both.
    Dist: {"balance": {"weight": 2.0}},
    # The text of setup 1 (maximzubkov/cnn-distillation).
    LogitsDiscriminator: {"balance": {"alpha": 0.5}, "temperature": 1.5},
}


def method_class(name: object) -> type[MethodConfig]:
    """Return the config class of a method by its name."""
    return next(each for each in AUTHORS_VALUES if get_args(each.model_fields["name"].annotation) == (name,))


def authors_config(method: type[MethodConfig], fixed: Mapping[str, Any]) -> MethodConfig:
    """Return the config of a method with the authors' values, except for what is fixed (JSON data, with its name)."""
    return method.model_validate_json(json.dumps({**AUTHORS_VALUES[method], **fixed}))


def spelled(balance: LossWeights, spelling: str) -> float:
    """Return the value of a spelling of `balance` that gives the two terms of the loss the same ratio.

    The loss as a whole may be larger or smaller: `alpha: 0.9` is `weight: 9`, ten times the loss.
    """
    cross_entropy, distillation = balance.weights
    if spelling in ("alpha", "alpha_ce"):
        return (distillation if spelling == "alpha" else cross_entropy) / (cross_entropy + distillation)
    return type(balance).model_validate({"weight": distillation / cross_entropy}).respell(spelling)
