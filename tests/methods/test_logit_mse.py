"""logit_mse against loops."""

import pytest
from losses import normal

from kdtrain.methods.logit_mse import logit_mse_loss


@pytest.mark.parametrize("shape", [(1, 2), (7, 2), (5, 10), (3, 200)])
def test_logit_mse_is_the_mean_square_over_images_and_classes(shape: tuple[int, int]) -> None:
    student, teacher = 3 * normal(*shape, purpose="s"), 3 * normal(*shape, purpose="t")
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        total += sum((s - t) ** 2 for s, t in zip(s_row, t_row, strict=True))
    ours = logit_mse_loss(student, teacher)
    assert ours.item() == pytest.approx(total / (shape[0] * shape[1]), rel=1e-12)
