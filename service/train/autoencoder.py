"""Training of the small KL autoencoder, in sessions of some minutes.

    rankpress train autoencoder DATA --run runs/kl --minutes 60 --decay 20

The loss is R + lmbda · 255² · MSE / 2 + lmbda_ms_ssim · (1 - MS-SSIM) / 2, with the lmbdas of one
rate of the two ladders (train/tunes.py). In half of the crops the latents get the noise of their
variance, and R is the KL divergence from the normal distribution in bits per pixel. In the other
half they are coded as coarsely as latent streams code them (`coarsely_coded`), R is about their
bits, and the lmbdas are smaller by the square of the factor of the step.

A new run starts from the layers at 1/8 resolution of a backbone of convolutions. The product of
rank C that best predicts the features of its g_s from those of its g_a, by least squares, joins
both halves.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from service.codec.sizes import AutoencoderSizes, ConvSizes, conv_sizes
from service.errors import BadParameter
from service.nets.autoencoder import KlAutoencoder
from service.nets.backbone import analysis, in_turn, synthesis
from service.nets.compiling import Compile, compile_blocks
from service.store.model import StoredModel
from service.train.checkpoint import has_state, read_about, read_tensors, write_state
from service.train.sampler import Sampler
from service.train.tunes import LADDER, MS_SSIM, ms_ssim_error, squared_error

RATE = 6
"""Rate of the ladders whose lmbdas weigh the errors."""

FACTORS = (1.5, 16.0)
"""Factors of the steps of coarse codes: qualities 8 and 1 of latent streams, about."""

BLOCK = 8
"""Side of the blocks of latents that are transformed."""

BITS = 2.0
"""Bits of a coefficient c, in steps, divided by log2(1 + |c|), about."""

CLIP = 1.0
"""Largest norm of the gradient."""

EMA = 0.998
"""Share of the old average that each step keeps."""

WARMUP = 100
"""Steps over which the learning rate rises."""

START_CROPS = 96
"""Crops that join the halves of a new autoencoder."""

REPORT_S, SAVE_S = 30.0, 300.0
"""Seconds between reports, and between checkpoints."""

LN2 = math.log(2)


@dataclass(frozen=True)
class AutoencoderProgress:
    """One progress report: means over the steps since the last one.

    Attributes:
        step: of the run, from 0. minutes: since the session began.
        loss: of all crops; all else is of those that are not coded coarsely.
        kl_bpp: KL divergence in bits per pixel. psnr_db: of the mean squared error.
        lr: learning rate of the last step.
    """

    step: int
    minutes: float
    loss: float
    kl_bpp: float
    psnr_db: float
    ms_ssim: float
    lr: float


class AutoencoderRun:
    """A run in its folder.

    Attributes:
        step: number of steps so far.
        net: the autoencoder in training. average: its running average, which is exported.
    """

    def __init__(
        self,
        folder: Path,
        sampler: Sampler,
        start: Callable[[], KlAutoencoder],
        lr: float,
        seed: int = 0,
        compiled: Compile = "off",
    ) -> None:
        """Begin a run with the autoencoder that `start` returns, or resume the one in the folder.

        Args:
            sampler: of the crops, whose sides are multiples of 8.
            lr: peak learning rate of Adam.
            seed: of all draws of the training.
            compiled: whether to compile the blocks; every mode but "off" does.
        """
        self._folder, self._sampler, self._lr, self._seed = folder, sampler, lr, seed
        self.step = 0
        saved: dict[str, Tensor] = {}
        if has_state(folder):
            about, saved = read_about(folder), dict(read_tensors(folder))
            self.step = about["step"]
            self.net = KlAutoencoder(AutoencoderSizes(**about["sizes"]))
            self.net.load_state_dict(_stripped(saved, "net."))
        else:
            self.net = start()
        self.average = KlAutoencoder(self.net.sizes)
        self.average.load_state_dict(_stripped(saved, "ema.") or self.net.state_dict())
        self._adam = torch.optim.Adam(self.net.parameters(), lr=lr, betas=(0.9, 0.98))
        self._load_moments(saved)
        if compiled != "off":
            compile_blocks(self.net)

    def train(
        self, minutes: float, decay: float, report: Callable[[AutoencoderProgress], None]
    ) -> None:
        """Train for some minutes, and save the state then and from time to time.

        Args:
            minutes: length of the session.
            decay: the learning rate falls to zero over this many last minutes; 0 for none.
            report: called about every REPORT_S seconds.
        """
        began = reported = saved = time.monotonic()
        steps: list[Tensor] = []
        while (spent := (time.monotonic() - began) / 60) < minutes:
            lr = self._learning_rate((minutes - spent) / decay if decay else 1.0)
            steps.append(self.step_once(lr))
            if time.monotonic() - reported > REPORT_S:
                reported = time.monotonic()
                report(_progress(self.step, spent, steps, lr))
                steps = []
            if time.monotonic() - saved > SAVE_S:
                saved = time.monotonic()
                self.save()
        self.save()

    def _learning_rate(self, left: float) -> float:
        """The rate of the next step; `left` is the share of the decay that is left, or more."""
        warmth = min(1.0, (self.step + 1) / WARMUP)
        return self._lr * warmth * (1 - math.cos(math.pi * min(1.0, left))) / 2

    def step_once(self, lr: float) -> Tensor:
        """One step; returns loss, KL, 255² · MSE and 1 - MS-SSIM."""
        torch.manual_seed(self._seed + self.step)
        measured = _errors(self.net, self._sampler.draw())
        self._adam.zero_grad()
        measured[0].backward()
        norm = nn.utils.clip_grad_norm_(self.net.parameters(), CLIP)
        if bool(norm.isfinite()):
            for group in self._adam.param_groups:
                group["lr"] = lr
            self._adam.step()
            self._update_average()
        self.step += 1
        return measured.detach()

    @torch.no_grad()
    def _update_average(self) -> None:
        keep = min(EMA, (1 + self.step) / (10 + self.step))
        for mine, theirs in zip(self.average.parameters(), self.net.parameters(), strict=True):
            mine.lerp_(theirs, 1 - keep)

    def _load_moments(self, saved: dict[str, Tensor]) -> None:
        """Give Adam the moments of a saved state; those of a new run are empty."""
        for name, p in self.net.named_parameters():
            if f"m.{name}" in saved:
                self._adam.state[p] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": saved[f"m.{name}"],
                    "exp_avg_sq": saved[f"v.{name}"],
                }

    def save(self) -> None:
        """Write the state to the folder, which is made if there is none."""
        tensors = {f"net.{n}": t for n, t in self.net.state_dict().items()}
        tensors |= {f"ema.{n}": t for n, t in self.average.state_dict().items()}
        for name, p in self.net.named_parameters():
            if state := self._adam.state[p]:
                tensors[f"m.{name}"], tensors[f"v.{name}"] = state["exp_avg"], state["exp_avg_sq"]
        about = {"sizes": asdict(self.net.sizes), "step": self.step}
        self._folder.mkdir(parents=True, exist_ok=True)
        write_state(self._folder, tensors, about)


def _errors(net: KlAutoencoder, x: Tensor) -> Tensor:
    """Loss of crops [B, H, W, 3], and of the first half KL, 255² · MSE and 1 - MS-SSIM, as [4]."""
    half = max(1, len(x) // 2)
    low, high = (math.log(f) for f in FACTORS)
    factor = math.exp(low + (high - low) * float(torch.rand(())))
    with torch.autocast("cpu", torch.bfloat16):
        mean, log_variance = net.encode(x - 0.5)
    noisy = mean[:half] + torch.randn_like(mean[:half]) * torch.exp(log_variance[:half] / 2)
    deviation = torch.exp(log_variance.detach() / 2).mean((0, 1, 2))
    coded, bits = coarsely_coded(mean[half:], factor * deviation)
    with torch.autocast("cpu", torch.bfloat16):
        x_hat = net.decode(torch.cat([noisy, coded])) + 0.5
    kl = (mean.square() + log_variance.exp() - 1 - log_variance)[:half].sum() / (2 * LN2)
    kl = kl / (x[:half].numel() / 3)
    fine, mse, error = _weighed(x_hat[:half], x[:half])
    loss = kl + fine
    if half < len(x):
        coarse, _, _ = _weighed(x_hat[half:], x[half:])
        # Multiplied by the factor, so that coarse codes count about as much as fine ones.
        loss = (loss + factor * bits / (x[half:].numel() / 3) + coarse / factor) / 2
    return torch.stack([loss, kl, mse, error])


def _weighed(x_hat: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted error of crops, 255² · MSE and 1 - MS-SSIM."""
    mse, error = squared_error(x_hat, x), ms_ssim_error(x_hat.clamp(0, 1), x)
    return LADDER[RATE] * mse / 2 + MS_SSIM.lmbdas[RATE] * error / 2, mse, error


def coarsely_coded(latents: Tensor, deviation: Tensor) -> tuple[Tensor, Tensor]:
    """Latents as a code of few bits keeps them, and about the bits of all of them.

    Blocks of a channel are transformed (DCT-II) and rounded to steps whose uniform noise has the
    given deviation, values below 0.6 steps to 0. Gradients are those of latents that are not
    rounded. Blocks begin at a random place.

    Args:
        latents: [B, rows, columns, C]. deviation: [C].
    """
    _, rows, columns, _ = latents.shape
    top, left = (int(n) for n in torch.randint(BLOCK, (2,)))
    bottom, right = ((-a - b) % BLOCK for a, b in ((rows, top), (columns, left)))
    planes = latents.float().permute(0, 3, 1, 2)
    planes = nn.functional.pad(planes, (left, right, top, bottom), mode="replicate")
    blocks = planes.unflatten(3, (-1, BLOCK)).unflatten(2, (-1, BLOCK))
    step = (math.sqrt(12) * deviation)[:, None, None, None, None]
    places = torch.arange(BLOCK)
    basis = torch.cos(math.pi / BLOCK * (places + 0.5) * places[:, None])
    basis = basis * torch.where(places > 0, 2, 1)[:, None].sqrt() / math.sqrt(BLOCK)
    values = torch.einsum("bcyixj,ki,lj->bcykxl", blocks, basis, basis) / step
    whole = values.sign() * (values.abs() + 0.4).floor()
    inside = rows * columns / (planes.shape[2] * planes.shape[3])
    bits = BITS * torch.log2(1 + values.abs()).sum() * inside
    values = values + (whole - values).detach()
    blocks = torch.einsum("bcykxl,ki,lj->bcyixj", values * step, basis, basis)
    planes = blocks.flatten(4, 5).flatten(2, 3)
    return planes[:, :, top : top + rows, left : left + columns].permute(0, 2, 3, 1), bits


def _progress(step: int, minutes: float, steps: list[Tensor], lr: float) -> AutoencoderProgress:
    """A report of steps, by what `_run` returned for each."""
    loss, kl, mse, error = torch.stack(steps).mean(0).tolist()
    psnr_db = 10 * math.log10(255**2 / mse)
    return AutoencoderProgress(step, minutes, loss, kl, psnr_db, 1 - error, lr)


def _stripped(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Tensors whose names begin with a prefix, by the rest of their names."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@torch.no_grad()
def from_backbone(model: StoredModel, sampler: Sampler, sizes: AutoencoderSizes) -> KlAutoencoder:
    """An autoencoder of the layers at 1/8 resolution of a backbone of convolutions.

    Args:
        sampler: of START_CROPS crops, whose sides are multiples of 16.
        sizes: blocks that the backbone lacks start at random.

    Raises:
        BadParameter: the backbone is of another family, or its width is another.
    """
    s = conv_sizes(model.sizes)
    if s.c8 != sizes.width:
        raise BadParameter(f"the backbone has {s.c8} channels at 1/8, expected {sizes.width}")
    g_a, g_s = analysis(s), synthesis(s)
    for part, name in ((g_a, "g_a"), (g_s, "g_s")):
        part.load_state_dict(_part_of(model, f"{name}."))
    net = KlAutoencoder(sizes)
    blocks = list(g_s)[s.nd16 + 2 : -1]
    pairs = [*zip(list(net.encoder)[:-1], list(g_a)[: 1 + s.ne8], strict=False)]
    pairs += [*zip(list(net.decoder)[1:-1], blocks, strict=False), (net.decoder[-1], g_s[-1])]
    for own, layer in pairs:
        own.load_state_dict(layer.state_dict())
    _join(net, *_features(net, g_a, g_s, s, sampler))
    return net


def _part_of(model: StoredModel, prefix: str) -> dict[str, Tensor]:
    """The state of a transform of a model."""
    return {
        n.removeprefix(prefix): torch.from_numpy(np.asarray(t, np.float32))
        for n, t in model.transforms.items()
        if n.startswith(prefix)
    }


def _features(
    net: KlAutoencoder, g_a: nn.Sequential, g_s: nn.Sequential, s: ConvSizes, sampler: Sampler
) -> tuple[Tensor, Tensor]:
    """Features of crops at 1/8 on the way into the backbone and out of it, float64 [n, c8]."""
    sources, targets = [], []
    crops = torch.cat([sampler.draw() for _ in range(START_CROPS // 8)])[:START_CROPS]
    for x in crops.split(8):
        y = g_a(x - 0.5)
        deep = in_turn(list(g_s)[: s.nd16 + 1], y[..., : s.c16])
        up = g_s[s.nd16 + 1](torch.cat([deep, y[..., s.c16 :]], -1))
        sources.append(in_turn(list(net.encoder)[:-1], x - 0.5).reshape(-1, s.c8))
        targets.append(up.reshape(-1, s.c8))
    return torch.cat(sources).double(), torch.cat(targets).double()


def _join(net: KlAutoencoder, source: Tensor, target: Tensor) -> None:
    """Set the layers at the latents to the best product of their rank: source -> target [n, c]."""
    channels = net.sizes.channels
    mean, goal = source.mean(0), target.mean(0)
    covariance = (source - mean).T @ (source - mean) / len(source)
    ridge = 1e-5 * covariance.diagonal().mean() * torch.eye(len(mean), dtype=torch.double)
    cross = (target - goal).T @ (source - mean) / len(source)
    whole = torch.linalg.solve(covariance + ridge, cross.T).T
    u, _, _ = torch.linalg.svd(whole @ (source - mean).T[:, ::7], full_matrices=False)
    basis = u[:, :channels]
    down = basis.T @ whole
    scale = (down @ covariance @ down.T).diagonal().sqrt()
    down, up = down / scale[:, None], basis * scale
    last, first = net.encoder[-1], net.decoder[0]
    assert isinstance(last, nn.Linear) and isinstance(first, nn.Linear)
    last.weight.zero_()
    last.bias.fill_(-4)
    last.weight[:channels] = down.float()
    last.bias[:channels] = -(down @ mean).float()
    first.weight.copy_(up.float())
    first.bias.copy_(goal.float())
