"""Batch normalization over the global batch in one process, compared with torch's; tests/ddp has several processes."""

import copy

import pytest
import torch
from made import images, made
from torch import Tensor, nn

from kdtrain.errors import UserError
from kdtrain.models.freezing import BATCH_NORMS
from kdtrain.models.sync_batch_norm import CpuSyncBatchNorm, SyncBatchNorm, convert_sync_batchnorm, trains_batch_norm
from kdtrain.runtime import distributed

CPU = torch.device("cpu")
SHAPES = {"2d": (4, 3, 5, 6), "1d": (6, 3), "1d maps": (4, 3, 7), "3d": (2, 3, 4, 3, 2)}
KINDS = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
LAYERS = {
    "plain": {},
    "no scale and shift": {"affine": False},
    "no running statistics": {"track_running_stats": False},
    "cumulative": {"momentum": None},
}


def values(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return values with a mean far from zero, for which E[x^2] - E[x]^2 has no correct digit."""
    return (1000 + 2 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).to(dtype)


def both(shape: tuple[int, ...], dtype: torch.dtype, **fields: object) -> tuple[nn.Module, nn.Module]:
    layer = KINDS[len(shape)](shape[1], **fields).to(torch.float64 if dtype == torch.float64 else torch.float32)
    for number, parameter in enumerate(layer.parameters()):
        parameter.data = number + torch.arange(1, len(parameter) + 1).to(parameter)
    own = convert_sync_batchnorm(copy.deepcopy(layer), CPU)
    assert isinstance(own, CpuSyncBatchNorm)
    return layer, own


def after_two_batches(layer: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Return outputs and gradients of the second, the buffers after both, and the output in evaluation mode."""
    layer(batch)
    given = batch.clone(memory_format=torch.preserve_format).requires_grad_()
    output = layer(given)
    output.mul(torch.arange(output.numel()).to(output).view(output.shape).sin()).sum().backward()
    found = {"output": output.detach(), "gradient": given.grad, **dict(layer.named_buffers())}
    found |= {f"gradient {name}": parameter.grad for name, parameter in layer.named_parameters()}
    return found | {"evaluated": layer.eval()(batch).detach()}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("shape", SHAPES)
def test_alone_it_is_torchs_own_in_float64(shape: str, kind: str) -> None:
    batch = values(SHAPES[shape], torch.float64)
    theirs, ours = both(SHAPES[shape], torch.float64, **LAYERS[kind])
    torch.testing.assert_close(
        after_two_batches(ours, batch), after_two_batches(theirs, batch), rtol=1e-9, atol=1e-11
    )  # fmt: skip


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_fewer_bits_it_has_torchs_types_layout_and_statistics(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    batch = (values(SHAPES["2d"], torch.float64) / 50).to(dtype).to(memory_format=layout)
    theirs, ours = (after_two_batches(layer, batch) for layer in both(SHAPES["2d"], dtype))
    assert {name: value.dtype for name, value in ours.items()} == {name: value.dtype for name, value in theirs.items()}
    assert ours["output"].is_contiguous(memory_format=layout)
    for name in ("running_mean", "running_var"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-6, atol=0)
    loose = {torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 1e-2}[dtype]  # torch rounds in between
    torch.testing.assert_close(ours, theirs, rtol=loose, atol=loose)


@pytest.mark.parametrize("model", ["resnet18", "test_efficientnet", "test_byobnet"])
def test_a_network_keeps_its_names_its_tensors_and_its_outputs(model: str) -> None:
    network = made(model)
    own = copy.deepcopy(network)
    tensors = dict(own.state_dict(keep_vars=True))
    assert convert_sync_batchnorm(own, CPU) is own
    assert all(own.state_dict(keep_vars=True)[name] is tensor for name, tensor in tensors.items())
    norms = [module for module in own.modules() if isinstance(module, BATCH_NORMS)]
    assert norms
    assert all(isinstance(norm, CpuSyncBatchNorm) for norm in norms)
    assert list(own.state_dict()) == list(network.state_dict())
    assert [name for name, _ in own.named_parameters()] == [name for name, _ in network.named_parameters()]
    for mode in (True, False):
        network.train(mode)
        own.train(mode)
        torch.testing.assert_close(own(images()), network(images()), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own.state_dict(), network.state_dict(), rtol=1e-4, atol=1e-5)


def test_kept_statistics_stay_and_so_does_what_is_normalised_by_them() -> None:
    network = made("test_efficientnet", batch_norm_statistics="keep")
    convert_sync_batchnorm(network, CPU)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network.train()(images())
    assert not trains_batch_norm(network)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_on_a_gpu_it_is_torchs_sync_batch_norm_with_the_librarys_activation_after_it() -> None:
    network = made("test_efficientnet")
    names = list(network.state_dict())
    convert_sync_batchnorm(network, torch.device("cuda"))
    norms = [module for module in network.modules() if isinstance(module, BATCH_NORMS)]
    assert all(isinstance(norm, SyncBatchNorm) and isinstance(norm, nn.SyncBatchNorm) for norm in norms)
    assert list(network.state_dict()) == names
    plain = made("test_efficientnet")
    torch.testing.assert_close(network.eval()(images()), plain.eval()(images()))


def test_the_image_of_an_idle_rank_enters_no_statistics_and_gets_no_gradient_of_them(monkeypatch) -> None:
    _, layer = both((4, 3), torch.float64)
    with distributed.idle(True), pytest.raises(ValueError, match="more than 1 value per channel"):
        layer(values((4, 3), torch.float64))
    assert not distributed.is_idle()


def test_one_value_per_channel_has_no_statistics_as_torch_says() -> None:
    for layer in both((1, 3), torch.float64):
        with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
            layer(values((1, 3), torch.float64))


def test_a_batch_norm_under_two_names_stays_one_module() -> None:
    shared = nn.BatchNorm1d(3)
    network = nn.ModuleDict({"one": shared, "two": nn.Sequential(shared)})
    convert_sync_batchnorm(network, CPU)
    assert isinstance(network["one"], CpuSyncBatchNorm)
    assert network["one"] is network["two"][0]


def test_a_batch_norm_with_a_forward_of_its_own_is_refused() -> None:
    class Odd(nn.BatchNorm2d):
        pass

    with pytest.raises(UserError, match=r"recipe.batch_norm: Odd has no form over several workers; write per_worker"):
        convert_sync_batchnorm(nn.Sequential(Odd(3)), CPU)
