"""The networks of whole training steps: shapes and counts, and per-sample norms of each family, scaled down."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from sam_kernels import per_sample
from sam_kernels.profiling import networks
from sam_kernels.profiling.models import Case
from sam_kernels.profiling.networks import NETWORKS, TINY
from sam_kernels.profiling.subjects import Wish, of_case, placed, subject_of
from sam_kernels.profiling.training import METHODS, Preset, Step
from sam_kernels.profiling.workloads import WORKLOADS

LISTED = {
    "resnet18": partial(networks.resnet18, 1000, small=False), "wrn28_10": NETWORKS["wrn28_10"].build,
    "vit_s16": NETWORKS["vit_s16"].build, "vit_b16": NETWORKS["vit_b16"].build, "gpt2": NETWORKS["gpt2"].build,
}  # fmt: skip
UNTIED = Case("untied GPT, T 8, B 4", partial(networks.GPT, 16, 2, 2, 50, 8, tied=False), (4, 8), 50, 50)
FAMILIES = TINY | {"untied_gpt": UNTIED}


@pytest.mark.parametrize("name", LISTED)
def test_parameters_are_those_of_the_workload(name: str) -> None:
    with torch.device("meta"):
        network = LISTED[name]()
    assert [tuple(p.shape) for p in network.parameters()] == WORKLOADS[name]
    assert all(p.requires_grad for p in network.parameters())


def test_the_resnet_of_cifar() -> None:
    with torch.device("meta"):
        network = NETWORKS["resnet18_cifar"].build()
    assert sum(p.numel() for p in network.parameters()) == 11_173_962
    assert next(network.parameters()).shape == (64, 3, 3, 3) and not any(isinstance(m, nn.MaxPool2d) for m in network.modules())


@pytest.mark.parametrize("name", NETWORKS)
def test_forwards_have_the_shapes_that_their_losses_want(name: str) -> None:
    case = NETWORKS[name]
    with torch.device("meta"):
        network = case.build()
        x = torch.zeros(2, case.shape[1], dtype=torch.int64) if case.entries else torch.zeros(2, *case.shape[1:])
        out = network(x)
    assert out.shape == ((2, case.shape[1], case.classes) if case.entries else (2, case.classes))


def test_strides_and_pooling_of_the_resnets() -> None:
    """Four stages of which three halve, behind a stem that divides by four or leaves the size alone."""
    for build, size in ((NETWORKS["resnet18_cifar"].build, 4), (LISTED["resnet18"], 1), (NETWORKS["wrn28_10"].build, 8)):
        with torch.device("meta"):
            network = build()
            pool = next(k for k, m in enumerate(network) if isinstance(m, nn.AdaptiveAvgPool2d))
            assert network[:pool](torch.zeros(2, 3, 32, 32)).shape[2:] == (size, size)


def test_a_gpt_looks_back_only_and_its_loss_is_a_mean_over_tokens() -> None:
    case = TINY["tiny_gpt"]
    model, (x, y) = case.model(), case.batch()
    changed = x.clone()
    changed[:, -1] = (changed[:, -1] + 1) % case.entries
    out, other = model(x), model(changed)
    assert torch.equal(out[:, :-1], other[:, :-1]) and not torch.equal(out[:, -1], other[:, -1])
    log_p = out.log_softmax(-1).gather(2, y[..., None])[..., 0]
    torch.testing.assert_close(case.losses(out, y), -log_p.mean(1))


def losses_of(case: Case, model: nn.Module, x: Tensor, y: Tensor) -> Callable[..., Tensor]:
    return lambda index=None: case.losses(model(x if index is None else x[index]), y if index is None else y[index])


@pytest.mark.parametrize("name", FAMILIES)
def test_norms_of_every_family_are_those_of_samples_alone(name: str) -> None:
    """In evaluation mode, with statistics that are not 0 and 1: BatchNorm in training mode has no sample alone."""
    case = FAMILIES[name]
    model, x, y = placed(case, Wish())
    for _ in range(3):
        model(x)
    per_sample.verify(model.eval(), losses_of(case, model, x, y), 4, samples=4, tolerance=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_contributions_of_samples_add_up_to_the_gradient(name: str) -> None:
    """In training mode, as the benchmark takes its steps."""
    case = FAMILIES[name]
    model, x, y = placed(case, Wish(dtype=torch.float64))
    params = list(model.parameters())
    want = torch.autograd.grad(case.losses(model(x), y).sum(), params)
    with per_sample.grad_norms(model, 4, weighted=True, reduction="sum", batchnorm="contribution") as norms:
        case.losses(model(x), y).sum().backward()
    norms.weighted_backward(torch.ones(4, dtype=torch.float64))
    for p, g in zip(params, want, strict=True):
        torch.testing.assert_close(p.grad, g)


@pytest.mark.parametrize("name", FAMILIES)
def test_steps_under_autocast(name: str) -> None:
    subject = of_case(FAMILIES[name], Wish(autocast=True))
    seen = []
    subject.model.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
    batchnorm = {} if "vit" in name or "gpt" in name else {"batchnorm": "contribution"}
    exact = METHODS["rw-exact"]
    for preset in (METHODS["sam"], Preset(exact.name, exact.options | batchnorm)):
        loss = Step(subject, preset)()
        assert torch.isfinite(loss) and loss.dtype == torch.float32
    assert set(seen) == {torch.bfloat16} and {p.dtype for p in subject.model.parameters()} == {torch.float32}


def test_what_is_convolutional_is_in_channels_last() -> None:
    for name, case in TINY.items():
        model, x, _ = placed(case, Wish())
        if case.channels_last:
            assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        assert case.channels_last == (name in ("tiny_resnet", "tiny_wrn"))
        kernels = [p for p in model.parameters() if p.dim() == 4 and p.shape[2] > 1 and p.shape[1] > 1]
        assert all(p.is_contiguous(memory_format=torch.channels_last) == case.channels_last for p in kernels)


def test_by_name_with_a_batch_size() -> None:
    subject = subject_of("resnet18_cifar", Wish(batch_size=2))
    assert subject.losses().shape == (2,) and subject.batch_size == 2 and "ResNet-18" in subject.label
    assert subject_of("tiny_gpt", Wish(batch_size=3)).with_norms is None
