"""One picture's instance adaptation, from the plain stream to the best one found.

Two phases. The update of g_s is fitted to the plain latents first, and pruned: where it pays it
moves the decoder further than latents can, and where it does not, that is soon known. Then the
latents are annealed, the update with them. What is optimised are floats; what counts is measured:
at fixed steps the picture is coded by the exact path, decoded, and kept if R + lmbda·D over real
bytes and real 8-bit pixels is the lowest so far. The plain stream is where it starts, so the answer
is never worse.

Pictures larger than a tile are worked on tile by tile, in turn, so memory beyond their latents is
bounded; each step sees its neighbours' latents as they are.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from time import perf_counter

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from service.adapt.decoder import DecoderUpdate, LearningRates
from service.adapt.latents import RateModel, annealed
from service.adapt.plan import Plan, decayed
from service.codec import container
from service.codec.entropy_model import Y_FRAC
from service.codec.model_stream import write_update
from service.codec.tiles import PATCH, Box, latent_box, tiles
from service.engine.pipeline import (
    Latents,
    LoadedModel,
    assemble,
    decode_latents,
    painted_tiles,
    pixels_under,
    with_update,
)
from service.engine.synthesis_torch import TorchTransforms
from service.engine.types import AdaptProgress
from service.errors import BadParameter, SelfTestFailed
from service.picture import Picture
from service.store import SYNTHESIS, layer_shapes

MEASURE_STEPS = 50
"""Steps of every tile between two measurements."""

PRUNE_TILES = 2
"""Tiles that gates are decided on."""

GIVE_UP, MARGIN = 0.6, 0.02
"""Share of the decoder's steps after which the update must have taken that share of the plain loss
off the distortion. What it costs is not asked for yet: pruning takes off most of that."""

DAMAGED = (safetensors.SafetensorError, KeyError, TypeError, ValueError, RuntimeError)
"""What reading a checkpoint that was tampered with can raise."""

BETAS = (0.9, 0.99)
"""Of Adam."""

UPDATE_LR = LearningRates()
"""While the update alone is fitted; half of it when latents move too."""


@dataclass(frozen=True)
class Job:
    """What to do.

    Attributes:
        picture: to adapt to. rate16: in sixteenths, of tune PSNR. lmbda: of that rate.
        plan: how much. seed: of everything drawn.
        max_seconds: the annealing is compressed so that it ends about then, None without a limit;
            with one, results depend on the machine's speed.
    """

    picture: Picture
    rate16: int
    lmbda: float
    plan: Plan
    seed: int = 0
    max_seconds: float | None = None

    def digest(self, identity: bytes) -> str:
        """Hash of what a checkpoint must be of, with the identity of the weights."""
        p = self.picture
        words = [p.width, p.height, p.grey, self.rate16, self.seed, self.plan]
        data = hashlib.sha256(identity + repr(words).encode())
        for plane in (p.rgb, p.alpha):
            data.update(b"" if plane is None else np.ascontiguousarray(plane).data)
        return data.hexdigest()


@dataclass(frozen=True)
class _Measured:
    """A stream, the latents it was made of, and what it is worth."""

    data: bytes
    y_hat: NDArray[np.int16]
    psnr_db: float
    loss: float


@dataclass
class _State:
    """Where the run is; all of it goes into a checkpoint."""

    step: int = 0
    elapsed_s: float = 0.0
    given_up: bool = False
    done: bool = False
    bytes_before: int = 0
    psnr_before: float = 0.0
    psnr_best: float = 0.0
    loss_best: float = math.inf
    trend: float = math.inf
    first_loss: float = 0.0


@dataclass(frozen=True, eq=False)
class _Tile:
    """One tile's place, the window that g_s needs for it, and its variables."""

    box: Box
    window: Box
    y: Tensor
    z: Tensor


class PictureAdaptation:
    """Implements engine.types.Adaptation. Not safe to share between threads."""

    def __init__(self, model: LoadedModel, job: Job, checkpoint: bytes | None = None) -> None:
        """Analyse the picture and code it plainly, or take up where a checkpoint left off.

        Args:
            model: merged for the job's rate, with torch. job: what to do.
            checkpoint: from `checkpoint()` of the same job.

        Raises:
            BadParameter: the checkpoint is damaged or of another job.
        """
        assert isinstance(model.analysis, TorchTransforms)
        self._model, self._job = model, job
        self._device = model.analysis.device
        stored = model.stored
        self._rate = RateModel(stored, self._device, model.analysis.dtype)
        self._box = latent_box(job.picture.width, job.picture.height)
        self._pixels = job.picture.width * job.picture.height
        g_s = {n: t for n, t in stored.transforms.items() if n.startswith(SYNTHESIS)}
        self._shapes = layer_shapes(g_s)
        self._tiles = [self._tile(box) for box in tiles(self._box)]
        self._canvas = torch.zeros(self._box.height, self._box.width, stored.sizes.M)
        self._canvas = self._canvas.to(self._device)
        self._generator = torch.Generator(self._device).manual_seed(job.seed)
        on_cpu = torch.Generator().manual_seed(job.seed)
        self._update: DecoderUpdate | None = DecoderUpdate(
            stored.transforms, job.plan.rank, on_cpu, self._device
        )
        self._state = _State()
        self._decoder_steps = job.plan.decoder_steps * len(self._tiles)
        self._total = job.plan.total * len(self._tiles)
        self._digest = job.digest(stored.identity)
        if checkpoint is None:
            self._begin()
        else:
            self._resume(checkpoint)

    @property
    def progress(self) -> AdaptProgress:
        """How far it is."""
        s = self._state
        phase = "done" if s.done else "decoder" if s.step < self._decoder_steps else "latents"
        return AdaptProgress(
            phase,
            s.step,
            self._total,
            len(self._best),
            8 * len(self._best) / self._pixels,
            s.psnr_best,
            s.bytes_before,
            8 * s.bytes_before / self._pixels,
            s.psnr_before,
        )

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do."""
        return self._state.done

    def best(self) -> bytes:
        """The best stream so far."""
        return self._best

    def advance(self, seconds: float) -> AdaptProgress:
        """Optimise for about that long: at least one step, and to the end of a phase's last."""
        start = last = perf_counter()
        while not self._state.done:
            self._advance_one()
            now = perf_counter()
            self._state.elapsed_s += now - last
            last = now
            if now - start >= seconds:
                break
        return self.progress

    def checkpoint(self) -> bytes:
        """Everything needed to go on, as safetensors."""
        tensors = {"generator": self._generator.get_state(), "best": _bytes(self._best)}
        if len(self._tiles) > 1 or self._state.step < self._decoder_steps:
            tensors["canvas"] = self._canvas
        tensors |= self._variables()
        names = {id(t): n for n, t in tensors.items()}
        for variable, state in self._optimiser.state.items():
            for part, value in state.items():
                tensors[f"adam.{part}.{names[id(variable)]}"] = value
        meta = {"digest": self._digest, "state": json.dumps(asdict(self._state))}
        plain = {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}
        return save_tensors(plain, meta | {"update": str(self._update is not None)})

    def _begin(self) -> None:
        plain = self._measure(None, settle=True)
        s, self._best = self._state, plain.data
        s.bytes_before, s.psnr_before, s.psnr_best = len(plain.data), plain.psnr_db, plain.psnr_db
        s.loss_best = s.first_loss = plain.loss
        if not self._decoder_steps:
            self._update = None
        self._optimiser = self._new_optimiser()
        s.done = self._total == 0

    def _resume(self, data: bytes) -> None:
        try:
            tensors = load_tensors(data)  # checks the whole of it
            meta = _metadata(data)
            state = json.loads(meta["state"])
            if meta["digest"] != self._digest:
                raise BadParameter("the checkpoint is of another picture, rate, plan or model")
            self._state = _State(**state)
            if meta["update"] != "True":
                self._update = None
            self._optimiser = self._new_optimiser()
            self._load(tensors)
        except DAMAGED as error:
            raise BadParameter(f"the checkpoint is damaged: {error}") from error

    @torch.no_grad()
    def _load(self, tensors: Mapping[str, Tensor]) -> None:
        self._best = tensors["best"].numpy().tobytes()
        self._generator.set_state(tensors["generator"])
        if "canvas" in tensors:
            self._canvas.copy_(tensors["canvas"])
        variables = self._variables()
        for name, variable in variables.items():
            if tensors[name].shape != variable.shape:
                raise ValueError(f"{name} is {tuple(tensors[name].shape)}")
            variable.copy_(tensors[name])
            state = {
                part: tensors[f"adam.{part}.{name}"].clone()
                for part in ("step", "exp_avg", "exp_avg_sq")
                if f"adam.{part}.{name}" in tensors
            }
            if state:
                moments = {k: v.to(self._device) for k, v in state.items() if k != "step"}
                self._optimiser.state[variable] = {"step": state["step"]} | moments

    def _variables(self) -> dict[str, Tensor]:
        """Every tensor that is optimised, by name."""
        out: dict[str, Tensor] = {}
        for i, tile in enumerate(self._tiles):
            out |= {f"y.{i}": tile.y, f"z.{i}": tile.z}
        if self._update is not None:
            out |= {f"update.{name}": t for name, t in self._update.tensors.items()}
        return out

    def _new_optimiser(self) -> torch.optim.Adam:
        """Adam over what the present phase moves."""
        plan, fitting = self._job.plan, self._state.step < self._decoder_steps
        groups = [] if self._update is None else self._update.groups(UPDATE_LR)
        for group in groups:
            group["lr"] *= plan.update_lr if fitting else plan.update_lr / 2
        if not fitting:
            latents = [t for tile in self._tiles for t in (tile.y, tile.z)]
            groups.append({"params": latents, "lr": plan.latent_lr})
        for group in groups:
            group["peak"] = group["lr"]
        return torch.optim.Adam(groups, betas=BETAS)

    def _tile(self, box: Box) -> _Tile:
        analysis = self._model.analysis
        assert analysis is not None
        window = box.grown(self._model.stored.sizes.halo, self._box)
        seen = analysis.analyse(pixels_under(self._job.picture.rgb, window))
        y = seen[box.relative(window).slices]
        z = analysis.hyper_analyse(y[None])[0]
        y_t, z_t = (torch.from_numpy(v.copy()).to(self._device) for v in (y, z))
        return _Tile(box, window, y_t.requires_grad_(), z_t.requires_grad_())

    def _advance_one(self) -> None:
        """One step of one tile, and what is due after it."""
        s = self._state
        fitting = s.step < self._decoder_steps
        share = self._share()
        for group in self._optimiser.param_groups:
            group["lr"] = group["peak"] * decayed(share)
        tile = self._tiles[s.step % len(self._tiles)]
        rate, distortion = self._loss(tile, None if fitting else self._job.plan.temperature(share))
        loss = rate + distortion
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()
        s.step += 1
        if fitting:
            now = distortion.item()
            s.trend = now if math.isinf(s.trend) else 0.9 * s.trend + 0.1 * now
            little = s.trend > self._plain_distortion() - MARGIN * s.first_loss
            hopeless = share >= GIVE_UP and little
            if s.step >= self._decoder_steps or share >= 1 or hopeless:
                self._end_fitting(hopeless)
            return
        last = s.step >= self._total or share >= 1
        if last or s.step % (MEASURE_STEPS * len(self._tiles)) == 0:
            self._keep(self._measure(self._update, settle=last))
        if last:
            self._end()

    def _share(self) -> float:
        """How much of the present phase is done, 0–1, by steps or by time."""
        s, limit = self._state, self._job.max_seconds
        fitting = s.step < self._decoder_steps
        if fitting:
            by_steps = s.step / self._decoder_steps
        else:
            by_steps = (s.step - self._decoder_steps) / (self._total - self._decoder_steps)
        if limit is None:
            return by_steps
        third = limit / 3 if self._decoder_steps else 0.0
        by_time = s.elapsed_s / third if fitting else (s.elapsed_s - third) / (limit - third)
        return max(by_steps, min(1.0, by_time))

    def _plain_distortion(self) -> float:
        """lmbda·D of the plain stream."""
        bits = 8 * self._state.bytes_before
        return self._state.first_loss - bits / self._pixels

    def _end_fitting(self, hopeless: bool) -> None:
        """Prune what was fitted, and drop it if nothing is left."""
        s, update = self._state, self._update
        s.step, s.given_up = self._decoder_steps, hopeless
        assert update is not None
        if not hopeless:
            update.prune(self._distortion, self._model.coder.tables)
        if hopeless or not update.update().layers:
            self._update = None
        else:
            self._keep(self._measure(update))
        self._optimiser = self._new_optimiser()

    def _end(self) -> None:
        """Prune once more for the latents as they are now."""
        if self._update is not None:
            self._update.prune(self._distortion, self._model.coder.tables)
            self._keep(self._measure(self._update))
        self._state.done = True

    def _loss(self, tile: _Tile, tau: float | None) -> tuple[Tensor, Tensor]:
        """R and lmbda·D per pixel: of a tile, and of the whole update. No tau, no latents."""
        pixels = self._inside(tile).height * self._inside(tile).width
        rate = torch.zeros((), device=self._device)
        y_hat = self._canvas[tile.window.slices]
        if tau is not None:
            coded = self._rate.code(tile.y, tile.z, annealed(tau, self._generator))
            rate = coded.bits / pixels
            y_hat = y_hat.clone()
            y_hat[tile.box.relative(tile.window).slices] = coded.y_hat
            self._canvas[tile.box.slices] = coded.y_hat.detach()
        if self._update is not None:
            rate = rate + self._update.bits(self._generator) / self._pixels
        with self._rate.autocast():
            error = self._squared_error(tile, y_hat)
        return rate, self._job.lmbda * error / (3 * pixels)

    def _inside(self, tile: _Tile) -> Box:
        """The tile's pixels that the picture has."""
        p = self._job.picture
        return tile.box.scaled(PATCH).cut(Box(0, 0, p.height, p.width))

    def _squared_error(self, tile: _Tile, y_hat: Tensor) -> Tensor:
        """Sum of squared errors over a tile's samples, in 8-bit steps."""
        changed = {} if self._update is None else self._update.parameters()
        x_hat = torch.func.functional_call(self._rate.net.g_s, changed, (y_hat[None],))[0]
        inside = self._inside(tile)
        x_hat = x_hat[inside.relative(tile.window.scaled(PATCH)).slices].float() + 0.5
        if self._job.picture.grey:
            x_hat = x_hat.mean(-1, keepdim=True)
        rgb = torch.from_numpy(self._job.picture.rgb[inside.slices].copy()).to(self._device)
        error: Tensor = (x_hat * 255 - rgb).square().sum()
        return error

    @torch.no_grad()
    def _distortion(self) -> float:
        """lmbda·D of the present update in bits of the whole picture, from a tile or two."""
        chosen = self._tiles[:: max(1, len(self._tiles) // PRUNE_TILES)][:PRUNE_TILES]
        pixels = sum(self._inside(t).height * self._inside(t).width for t in chosen)
        error = sum(float(self._squared_error(t, self._canvas[t.window.slices])) for t in chosen)
        return self._job.lmbda * error / (3 * pixels) * self._pixels

    @torch.no_grad()
    def _measure(self, update: DecoderUpdate | None, settle: bool = False) -> _Measured:
        """Code the picture as it is now, decode it, and say what that is worth.

        Args:
            update: to send. settle: take the coded latents for what windows see of them.
        """
        model, job = self._model, self._job
        coded = []
        y_hat = np.empty((self._box.height, self._box.width, model.stored.sizes.M), np.int16)
        for tile in self._tiles:
            y, z = (v.detach().cpu().numpy()[None] for v in (tile.y, tile.z))
            result = model.coder.encode(y, z)
            coded.append(result.data[0])
            y_hat[tile.box.slices] = result.y_hat[0]
        if settle:
            self._canvas.copy_(torch.from_numpy(y_hat.astype(np.float32)) / 2**Y_FRAC)
        stream = assemble(model, job.picture, job.rate16, container.PSNR, tuple(coded))
        found = None if update is None else update.update()
        if found is not None and found.layers:
            payload = write_update(found, self._shapes, model.coder.tables)
            stream = replace(stream, update=payload)
        squared = 0
        everything = Box(0, 0, job.picture.height, job.picture.width)
        own = with_update(model, stream)
        latents = Latents(self._box, y_hat, 0.0)
        for box, rgb in painted_tiles(own, latents, everything, job.picture.grey):
            error = np.subtract(rgb, job.picture.rgb[box.slices], dtype=np.int16)
            squared += int(np.square(error, dtype=np.int32).sum(dtype=np.int64))
        data = container.write_stream(stream)
        mse = squared / job.picture.rgb.size
        psnr_db = 10 * math.log10(255**2 / mse) if mse else math.inf
        return _Measured(data, y_hat, psnr_db, 8 * len(data) / self._pixels + job.lmbda * mse)

    def _keep(self, found: _Measured) -> None:
        """Make it the best if it is, once it has been decoded from its bytes."""
        if found.loss >= self._state.loss_best:
            return
        stream = container.read_stream(found.data)
        everything = Box(0, 0, self._job.picture.height, self._job.picture.width)
        if not np.array_equal(decode_latents(self._model, stream, everything).y_hat, found.y_hat):
            raise SelfTestFailed("the adapted stream decodes to other latents than were encoded")
        self._best = found.data
        self._state.loss_best, self._state.psnr_best = found.loss, found.psnr_db


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _metadata(data: bytes) -> dict[str, str]:
    """The metadata of a safetensors file in memory."""
    length = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + length])["__metadata__"]
    if not isinstance(found, dict):
        raise ValueError("no metadata")
    return found
