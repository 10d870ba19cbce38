"""SOAP finds the axes of a problem, and is resumed exactly like the rest of a training step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from service.train import soap
from service.train.soap import Soap

BETAS = (0.9, 0.98)
STEPS = 600
CPU = torch.device("cpu")
ALWAYS, ONE = torch.tensor(True), torch.ones(())


def rotation(size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(size, size, generator=generator))[0]


def regress(move: Callable[[nn.Parameter, int], None]) -> float:
    """Error of a linear regression; along axes of theirs its inputs deviate by 1 to 1/100.

    Args:
        move: takes the weights, with a gradient, and the number of the step.
    """
    generator = torch.Generator().manual_seed(5)
    axes = rotation(16, 1) * torch.logspace(0, -2, 16)
    target = torch.randn(8, 16, generator=generator) @ torch.linalg.inv(axes) / 10
    weight = nn.Parameter(torch.zeros(8, 16))
    for step in range(STEPS):
        x = torch.randn(16, 16, generator=generator) @ axes.T
        loss = (x @ (weight - target).T).square().sum(1).mean()
        (weight.grad,) = torch.autograd.grad(loss, [weight])
        move(weight, step)
    return ((weight - target).detach() @ axes).square().sum().item()


def lr_of(step: int) -> float:
    return 0.1 * (1 - step / STEPS)


def test_soap_descends_along_the_axes_of_the_problem() -> None:
    optimisers: list[torch.optim.Adam] = []
    works: list[Soap] = []

    def by_adam(weight: nn.Parameter, step: int) -> None:
        if not step:
            optimisers.append(torch.optim.Adam([weight], betas=BETAS))
        optimisers[0].param_groups[0]["lr"] = lr_of(step)
        optimisers[0].step()

    def by_soap(weight: nn.Parameter, step: int) -> None:
        if not step:
            works.append(Soap({"w": weight}, BETAS, CPU))
        works[0].refresh(step)
        works[0].step(torch.tensor(lr_of(step)), ONE, ALWAYS)

    assert regress(by_soap) < 0.4 * regress(by_adam)


def test_bases_become_the_eigenvectors_and_stay_orthonormal() -> None:
    weight = nn.Parameter(torch.zeros(6, 4))
    work = Soap({"w": weight}, (0.9, 0.9), CPU)
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(0, -2, 6)
    axes = (rotation(6, 3), rotation(6, 4))  # they turn half way
    for step in range(20 * soap.REFRESH):
        noise = torch.randn(6, 4, generator=generator)
        weight.grad = axes[step >= 10 * soap.REFRESH] @ (scale[:, None] * noise)
        work.refresh(step)
        work.step(torch.zeros(()), ONE, ALWAYS)
    state = work.tensors()
    basis = state["rows basis.w"]
    assert torch.allclose(basis.T @ basis, torch.eye(6), atol=1e-5)
    # how much of each old axis the found one has; the covariance is of few samples
    assert (axes[1].T @ basis).abs().max(0).values.min() > 0.9
    assert torch.equal(weight, torch.zeros(6, 4))


def test_gradients_that_are_not_finite_change_nothing() -> None:
    weight = nn.Parameter(torch.ones(5, 3))
    work = Soap({"w": weight}, BETAS, CPU)
    weight.grad = rotation(5, 0)[:, :3].contiguous()
    work.step(torch.tensor(1e-2), ONE, ALWAYS)
    before = {n: t.clone() for n, t in work.tensors().items()} | {"w": weight.clone()}
    assert not torch.equal(weight, torch.ones(5, 3))
    weight.grad[0, 0] = torch.nan
    work.step(torch.tensor(1e-2), ONE, torch.tensor(False))
    after = work.tensors() | {"w": weight}
    assert all(torch.equal(before[n], after[n]) for n in before)


def test_matrices_without_a_gradient_keep_their_bases() -> None:
    weight = nn.Parameter(torch.ones(5, 3))
    work = Soap({"w": weight}, BETAS, CPU)
    for step in range(3 * soap.REFRESH):
        weight.grad = torch.zeros(5, 3)
        work.refresh(step)
        work.step(torch.tensor(1e-2), ONE, ALWAYS)
    assert torch.equal(weight, torch.ones(5, 3))
    for basis in ("rows basis.w", "columns basis.w"):
        found = work.tensors()[basis]
        assert torch.allclose(found @ found.T, torch.eye(len(found)), atol=1e-5)


@pytest.mark.parametrize("shape", [(4,), (4, 1), (3, 1, 3, 3), (soap.LARGEST + 1, 8)])
def test_what_is_no_matrix_of_moderate_size_is_left_to_adam(shape: tuple[int, ...]) -> None:
    assert not soap.suits(torch.zeros(shape)) and soap.suits(torch.zeros(8, soap.LARGEST))
