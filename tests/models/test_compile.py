"""A compiled network computes what the same network computes, its features and gradients too."""

import pytest
import torch
from torch._dynamo.utils import counters

from kdtrain.models.build import build
from kdtrain.models.classifier import Classifier
from kdtrain.models.config import Network

STAGES = ("4", "pool")


def built(compiled: bool) -> Classifier:
    return build(Network(model="lenet5_student", compile=compiled), (1, 32, 32), 10, 0).train()


def step(network: Classifier, images: torch.Tensor) -> list[torch.Tensor]:
    """Return logits, features and gradients."""
    logits, features = network.outputs(images, STAGES)
    (logits.logsumexp(1).mean() + sum(maps.square().mean() for maps in features.values())).backward()
    gradients = [parameter.grad for parameter in network.parameters()]
    network.zero_grad(set_to_none=True)
    return [logits, *(features[stage] for stage in STAGES), *gradients]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own compiler
def test_compiled_outputs_and_gradients_are_those_of_the_network(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    counters.clear()
    images = torch.rand(6, 1, 32, 32)
    plain, compiled = built(False), built(True)
    torch.testing.assert_close(step(compiled, images), step(plain, images), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    compiled(images)  # an evaluation in between does not cause another compilation
    torch.testing.assert_close(step(compiled, images), step(plain, images), rtol=1e-4, atol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1
    assert any(tmp_path.rglob("*.so")), "the compiler's cache is not in TORCHINDUCTOR_CACHE_DIR"
