"""The pure losses under one name, for use in other training loops: `kd.losses.kd_loss(student, teacher)`.

Each takes plain tensors and returns a scalar: a mean over the N images in nats or squared units, computed in at least
float32 even inside autocast. Teacher tensors get no gradient. Weights of terms are the caller's.
"""

from kdtrain.methods.at import at_loss
from kdtrain.methods.base import cross_entropy
from kdtrain.methods.dist import dist_loss
from kdtrain.methods.dkd import dkd_loss
from kdtrain.methods.kd import kd_loss
from kdtrain.methods.logit_mse import logit_mse_loss
from kdtrain.methods.logit_standardization import standardize_logits
from kdtrain.methods.logits_discriminator import gradient_penalty, wasserstein_critic_loss
from kdtrain.methods.mgd import mgd_loss
from kdtrain.methods.r_drop import symmetric_kl
from kdtrain.methods.rkd import rkd_angle_loss, rkd_distance_loss
from kdtrain.methods.sp import sp_loss

__all__ = [
    "at_loss",
    "cross_entropy",
    "dist_loss",
    "dkd_loss",
    "gradient_penalty",
    "kd_loss",
    "logit_mse_loss",
    "mgd_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "sp_loss",
    "standardize_logits",
    "symmetric_kl",
    "wasserstein_critic_loss",
]
