"""One training step, the same on the CPU, on CUDA and replayed from a CUDA graph.

Sampling, loss, gradients, clipping, AdamW and the average of the weights (EMA) all happen on the
device. Nothing in a step waits for the host: the learning rate is a tensor, and a step whose
gradients are not finite is told to AdamW (`found_inf`) and to the average as a weight of zero, so
that it changes nothing but a counter. Every draw of a step depends on (seed, step) alone.

Loss: R + lmbda · 255² · MSE, R in bits per pixel on additive noise (nets/model.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from service.nets.model import Backbone
from service.train.compiling import Compile, compile_blocks
from service.train.recipe import Recipe
from service.train.sample import Sampler

BETAS: Final = (0.9, 0.98)
WARM_UP_STEPS: Final = 3
"""Steps done eagerly before a graph is captured; they count like any other."""


@dataclass(frozen=True)
class Means:
    """Over the steps since the last reading that were finite, and how many there were."""

    steps: int
    loss: float
    bpp: float
    mse: float


class TrainingStep:
    """A model in training with all that a step reads and writes, in tensors that stay in place."""

    def __init__(
        self, model: Backbone, sampler: Sampler, recipe: Recipe, compiled: Compile, graph: bool
    ) -> None:
        """Prepare to train.

        Args:
            model: on its device; trained in place. sampler: on the same.
            recipe: see Recipe. compiled: "off", "blocks" or "whole".
            graph: replay the step from a CUDA graph.
        """
        self.model, self._sampler, self._recipe = model, sampler, recipe
        self.parameters = dict(model.named_parameters())
        weights: list[Tensor] = list(self.parameters.values())
        device = self._device = weights[0].device
        self._lr, self._share = (torch.zeros((), device=device) for _ in range(2))
        self._optimiser = torch.optim.AdamW(
            weights, self._lr, BETAS, weight_decay=0.0, fused=True, capturable=device.type == "cuda"
        )
        # AdamW would warn of steps outside a graph, which are meant
        self._optimiser._warned_capturable_if_run_uncaptured = True
        for weight in weights:
            self._optimiser.state[weight] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        self._average = [w.detach().clone() for w in weights]
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = self._plain_loss
        if compiled == "blocks":
            compile_blocks(model)
        elif compiled == "whole":
            self._loss = torch.compile(self._plain_loss, dynamic=False)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm_up = WARM_UP_STEPS if graph and device.type == "cuda" else -1
        self._side = torch.cuda.Stream(device) if self._warm_up > 0 else None

    def run(self, step: int, lr: float) -> None:
        """Do step number `step` (from 0); on CUDA it is only begun."""
        torch.manual_seed(self._recipe.seed * 10**9 + step)
        self._lr.fill_(lr)
        self._share.fill_(1 - min(self._recipe.ema, (1 + step) / (10 + step)))
        if self._graph is not None:
            self._graph.replay()
        elif self._side is None:
            self._step()
        elif self._warm_up > 0:
            self._on_side()
        else:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()
            self._graph.replay()

    def means(self) -> Means:
        """Read and reset the running sums; waits for the device."""
        loss, bpp, mse, steps = self._sums.tolist()
        self._sums.zero_()
        count = max(steps, 1)
        return Means(int(steps), loss / count, bpp / count, mse / count)

    @property
    def skipped(self) -> int:
        """Steps whose gradients were not finite; waits for the device."""
        return int(self._skipped)

    def wait(self) -> None:
        """Until the device has done all steps that were begun."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def tensors(self) -> dict[str, Tensor]:
        """The whole state by name: "model.", "ema." (state dicts), "adam.", "skipped"."""
        state = self.model.state_dict()
        averaged = state | dict(zip(self.parameters, self._average, strict=True))
        out = {f"model.{n}": t for n, t in state.items()}
        out |= {f"ema.{n}": t for n, t in averaged.items()}
        for name, weight in self.parameters.items():
            moments = self._optimiser.state[weight]
            out[f"adam.m.{name}"], out[f"adam.v.{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
            out["adam.step"] = moments["step"]
        out["skipped"] = self._skipped
        return out

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take up a state that `tensors` gave, moments of another type included."""
        mine = self.tensors()
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])
        for weight in self.parameters.values():
            self._optimiser.state[weight]["step"].copy_(tensors["adam.step"])

    def averaged(self) -> dict[str, Tensor]:
        """State dict of the averaged weights, on the CPU."""
        prefix = "ema."
        found = {n: t for n, t in self.tensors().items() if n.startswith(prefix)}
        return {n.removeprefix(prefix): t.detach().cpu().clone() for n, t in found.items()}

    def update(self, divisor: Tensor, finite: Tensor) -> None:
        """Move the weights by their gradients over a divisor; not at all where not finite."""
        # as torch's GradScaler tells the optimiser: divide by the one, do nothing at the other
        optimiser: Any = self._optimiser
        optimiser.grad_scale, optimiser.found_inf = divisor, (~finite).float()
        optimiser.step()

    def _on_side(self) -> None:
        """A step on another stream, as capturing wants it before it."""
        assert self._side is not None
        self._warm_up -= 1
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):
            self._step()
        torch.cuda.current_stream().wait_stream(self._side)

    def _plain_loss(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, bits per pixel and MSE of crops."""
        # casts of weights must not be kept from one step to the next, as a graph would keep them
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            e = self.model(x, noise=True)
        bpp = (e.bits_y + e.bits_z).sum() / (x.numel() / 3)
        mse = (e.x_hat - x).square().mean()
        return bpp + self._recipe.lmbda * 255**2 * mse, bpp, mse

    def _step(self) -> None:
        """Draw, differentiate, update; nothing here may look at a value on the host."""
        weights: list[Tensor] = list(self.parameters.values())
        loss, bpp, mse = self._loss(self._sampler.draw())
        for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            # fused updates walk both in memory order
            same = grad.stride() == weight.stride()
            weight.grad = grad if same else grad.contiguous()
        with torch.no_grad():
            norms = torch._foreach_norm([w.grad for w in weights if w.grad is not None])
            norm = torch.linalg.vector_norm(torch.stack(norms))
            finite = torch.isfinite(norm + loss)
            self.update((norm / self._recipe.clip).clamp_min(1.0), finite)
            change = torch._foreach_sub(weights, self._average)
            torch._foreach_mul_(change, self._share * finite)
            torch._foreach_add_(self._average, change)
            seen = torch.stack([loss, bpp, mse, torch.ones_like(loss)]).double()
            self._sums += torch.where(finite, seen, torch.zeros_like(seen))
            self._skipped += (~finite).long()
