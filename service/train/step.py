"""One training step, the same on the CPU, on CUDA and replayed from a CUDA graph.

Sampling, loss, gradients, clipping, the optimisers and the average of the weights (EMA) all run on
the device: SOAP (soap.py) trains the matrices of a base of convolutions, Adam everything else.
Nothing in a step waits for the host: the learning rate is a tensor, and the optimisers and the
average read a flag that is false when the gradients are not finite, so that such a step changes
nothing but a counter. All random draws of a step are functions of (seed, step).

A Swin base is trained by Adam alone: after 144 steps of the same crops, SOAP's loss was 4 % higher,
and its steps took 1.5 times as long.

The loss of a rate is R + lmbda · 255² · MSE, with R in bits per pixel on additive noise
(nets/model.py), or on rounded latents if the recipe is `frozen`. A step's loss is the weighted mean
over its groups' rates.
"""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor, nn

from service.codec.sizes import ConvSizes
from service.nets.compiling import Compile, compile_blocks
from service.nets.model import Relax, ste_round
from service.train.evaluate import psnr_db
from service.train.ladder import RateLadder
from service.train.progress import RateFigures
from service.train.recipe import BackboneRecipe
from service.train.sampler import Sampler
from service.train.soap import Soap, suits
from service.train.tunes import BASE, LADDER
from service.train.world import ALONE, World

BETAS: Final = (0.9, 0.98)
WARM_UP_STEPS: Final = 3
"""Steps that run eagerly before a graph is captured; they are ordinary steps of the run."""


class TrainingStep:
    """A ladder in training: all that a step reads and writes, in tensors that stay in place."""

    def __init__(
        self,
        ladder: RateLadder,
        sampler: Sampler,
        recipe: BackboneRecipe,
        compiled: Compile,
        graph: bool,
        world: World = ALONE,
    ) -> None:
        """Prepare to train a ladder in place; with `graph`, CUDA replays steps from a graph."""
        self.ladder, self._sampler, self._recipe = ladder, sampler, recipe
        self._world = world
        self._relax: Relax = ste_round if recipe.frozen else self._noisy
        self.parameters: dict[str, nn.Parameter] = {}
        device = self._device = ladder.base.z_idx.device
        self._share = torch.zeros((), device=device)
        self._rates: list[tuple[float, Tensor]] = []
        options, matrices = [], dict[str, nn.Parameter]()
        for share, group in ladder.groups(recipe.frozen):
            self.parameters |= group
            self._rates.append((share, torch.zeros((), device=device)))
            # the ladder's own matrices have a row for each rate, which holds many layers
            fit = {n: w for n, w in group.items() if n.startswith("base.") and suits(w)}
            fit = fit if ladder.base.sizes.family == ConvSizes.family else {}
            matrices |= fit
            others = {n: w for n, w in group.items() if n not in fit}
            options.append({"params": list(others.values()), "lr": self._rates[-1][1]})
        for name, parameter in ladder.named_parameters():
            parameter.requires_grad_(name in self.parameters)
        self._masks = ladder.masks(recipe.frozen)
        self._optimiser = torch.optim.AdamW(
            options, 0.0, BETAS, weight_decay=0.0, fused=True, capturable=device.type == "cuda"
        )
        # AdamW would warn about steps outside a graph, which are intended
        self._optimiser._warned_capturable_if_run_uncaptured = True
        self._soap = Soap(matrices, BETAS, device)
        self._others = {n: w for n, w in self.parameters.items() if n not in matrices}
        for weight in self._others.values():
            self._optimiser.state[weight] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(weight),
                "exp_avg_sq": torch.zeros_like(weight),
            }
        self._average = [w.detach().clone() for w in self.parameters.values()]
        rates = ladder.rates
        lmbdas = torch.tensor([LADDER[r] for r in rates], device=device)
        self._lmbdas = lmbdas * 255**2
        self._balance = (lmbdas / LADDER[BASE]) ** -recipe.balance
        self._sums = torch.zeros(len(rates), 4, dtype=torch.float64, device=device)
        self._skipped = torch.zeros((), dtype=torch.int64, device=device)
        self._loss = self._plain_loss
        if compiled != "off":
            sampler.compile()
        if compiled == "blocks":
            compile_blocks(ladder)
        elif compiled == "whole":
            self._loss = torch.compile(self._plain_loss, dynamic=False)
        self._graph: torch.cuda.CUDAGraph | None = None
        self._warm_up = WARM_UP_STEPS if graph and device.type == "cuda" else -1
        self._warm_up_stream = torch.cuda.Stream(device) if self._warm_up > 0 else None

    def run(self, step: int, lr: float) -> None:
        """Run step number `step`, counted from 0; on CUDA this returns before the step is done."""
        torch.manual_seed(self._recipe.seed * 10**9 + step)
        for share, rate in self._rates:
            rate.fill_(share * lr)
        self._share.fill_(1 - min(self._recipe.ema, (1 + step) / (10 + step)))
        self._soap.refresh(step)
        if self._graph is not None:
            self._graph.replay()
        elif self._warm_up_stream is None:
            self._step()
        elif self._warm_up > 0:
            self._warm_up_step()
        else:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._step()
            self._graph.replay()

    def means(self) -> dict[int, RateFigures]:
        """Read and reset the means of each rate over finite steps; waits for the device.

        Rates that no finite step trained are left out.
        """
        sums = self._sums.tolist()
        self._sums.zero_()
        return {
            rate: RateFigures(loss / steps, bpp / steps, psnr_db(mse / steps))
            for rate, (loss, bpp, mse, steps) in zip(self.ladder.rates, sums, strict=True)
            if steps
        }

    @property
    def skipped(self) -> int:
        """Steps whose gradients were not finite; waits for the device."""
        return int(self._skipped)

    def wait(self) -> None:
        """Wait until the device has finished all steps."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state: "model." and "ema." (state dicts), "soap.", "adam." and "skipped"."""
        out = {f"model.{n}": t for n, t in self.ladder.state_dict().items()}
        out |= {f"ema.{n}": t for n, t in self.averaged().items()}
        out |= {f"soap.{n}": t for n, t in self._soap.tensors().items()}
        for name, weight in self._others.items():
            moments = self._optimiser.state[weight]
            out[f"adam.m.{name}"], out[f"adam.v.{name}"] = moments["exp_avg"], moments["exp_avg_sq"]
            out["adam.step"] = moments["step"]
        out["skipped"] = self._skipped
        return out

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Load a state that `tensors` returned; moments may have another type."""
        for name, tensor in self.tensors().items():
            tensor.copy_(tensors[name])
        for weight in self._others.values():
            self._optimiser.state[weight]["step"].copy_(tensors["adam.step"])

    def averaged(self) -> dict[str, Tensor]:
        """Return a state dict of the ladder with the averaged weights, which steps change."""
        return self.ladder.state_dict() | dict(zip(self.parameters, self._average, strict=True))

    def update(self, divisor: Tensor, finite: Tensor) -> None:
        """Update the weights with their gradients over a divisor, unless `finite` is false."""
        # the attributes that torch's GradScaler sets: a divisor, and a flag to skip the step
        optimiser: Any = self._optimiser
        optimiser.grad_scale, optimiser.found_inf = divisor, (~finite).float()
        optimiser.step()
        self._soap.step(self._rates[0][1], divisor, finite)

    def _warm_up_step(self) -> None:
        """Run a step on another stream, as torch requires before a graph is captured."""
        assert self._warm_up_stream is not None
        self._warm_up -= 1
        self._warm_up_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._warm_up_stream):
            self._step()
        torch.cuda.current_stream().wait_stream(self._warm_up_stream)

    def _noisy(self, v: Tensor) -> Tensor:
        """Add uniform noise in ±1/2: this process's part of the noise of the whole batch."""
        items = len(v) * self._world.size
        noise = torch.rand(items, *v.shape[1:], device=v.device)
        return v + self._world.part(noise, self._recipe.groups) - 0.5

    def _draw_rates(self) -> Tensor:
        """The places in the ladder of this step's rates."""
        count = len(self.ladder.rates)
        if count == self._recipe.groups:
            return torch.arange(count, device=self._device)
        return torch.rand(count, device=self._device).argsort()[: self._recipe.groups]

    def _plain_loss(self, x: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """Weighted loss of crops, and each group's loss, bits per pixel and MSE [groups, 3]."""
        # without the cache: a graph would keep casts of weights from one step to the next
        with torch.autocast(x.device.type, torch.bfloat16, cache_enabled=False):
            e = self.ladder(x, index, self._relax)
        groups = self._recipe.groups
        bits = (e.bits_y + e.bits_z).reshape(groups, -1)
        bpp = bits.mean(1) / (x.shape[1] * x.shape[2])
        mse = (e.x_hat - x).square().reshape(groups, -1).mean(1)
        losses = bpp + self._lmbdas[index] * mse
        return (losses * self._balance[index]).mean(), torch.stack([losses, bpp, mse], 1)

    def _step(self) -> None:
        """Draw, differentiate and update; nothing here may read a value on the host."""
        weights: list[Tensor] = list(self.parameters.values())
        index = self._draw_rates()
        loss, figures = self._loss(self._sampler.draw(), index)
        for weight, grad in zip(weights, torch.autograd.grad(loss, weights), strict=True):
            # fused updates read both in memory order
            same_order = grad.stride() == weight.stride()
            weight.grad = grad if same_order else grad.contiguous()
        with torch.no_grad():
            for name, mask in self._masks.items():
                part = self.parameters[name].grad
                assert part is not None
                part.mul_(mask)
            grads = [w.grad for w in weights if w.grad is not None]
            figures = torch.cat([figures, torch.ones_like(figures[:, :1])], 1).double()
            self._world.average(grads)
            self._world.average([figures])
            norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
            finite = torch.isfinite(norm + figures.sum())
            self.update((norm / self._recipe.clip).clamp_min(1.0), finite)
            change = torch._foreach_sub(weights, self._average)
            torch._foreach_mul_(change, self._share * finite)
            torch._foreach_add_(self._average, change)
            figures = torch.where(finite, figures, torch.zeros_like(figures))
            self._sums.index_add_(0, index, figures)
            self._skipped += (~finite).long()
