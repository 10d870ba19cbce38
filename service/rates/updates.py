"""Ready updates of g_s, one for each kind of picture: what effort 0 of adaptation chooses from.

    rankpress train updates DRAWINGS SCREENS PHOTOS --model model_store/light --scratch runs/updates

One update serves all rates: its factors are in units of the weights' rows and columns
(codec/lowrank.py), and it is fitted to plain latents of a few rates in turn. Folders say which
pictures belong together to begin with; after each round a picture moves to the update that serves
it best and all are fitted further (k-means with updates for centres). A picture's loss counts as a
share of what the plain codec has there, so that no picture or rate outweighs the others. The bytes
of an update are not in any stream, so they are priced only to keep the store small.

A round's update is written as it is done, and a run that is cut off goes on after the last one;
draws depend on (seed, round, group, step) alone.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from service.adapt.decoder import DecoderUpdate, LearningRates
from service.adapt.plan import decayed
from service.codec.coder import Tables
from service.codec.entropy_model import Y_FRAC
from service.codec.model_stream import write_update
from service.files import write_whole
from service.rates.plain_tiles import Group, RateNet, Tile, digest_of, rate_nets, read_groups
from service.store.model import StoredModel, StoredUpdate, layer_shapes
from service.store.read import load_model
from service.store.write import publish_updates

BETAS = (0.9, 0.99)
"""Of Adam, as in adaptation."""

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Recipe:
    """How the updates are fitted.

    Attributes:
        rates: of the PSNR ladder, in turn. rank: rank-1 pieces of a layer, at most.
        rounds: of fitting and sorting. steps: of the first round; half as many in others.
        batch: tiles a step. tile: their side in pixels. tiles: of a folder.
        lr: factor of adaptation's learning rates. price: share of the loss that a bit must save.
        seed: of tiles, draws and initial factors.
    """

    rates: tuple[int, ...] = (2, 4, 6)
    rank: int = 4
    rounds: int = 2
    steps: int = 300
    batch: int = 4
    tile: int = 256
    tiles: int = 48
    lr: float = 2.0
    price: float = 1e-7
    seed: int = 0

    def steps_of(self, number: int) -> int:
        """Steps of a round, counted from 0."""
        return self.steps if number == 0 else self.steps // 2


@dataclass(frozen=True)
class Progress:
    """One line of progress; `loss` is the running mean of lmbda·D as a share of the plain loss."""

    round: int
    group: str
    step: int
    steps: int
    loss: float
    bits: float


Report = Callable[[Progress], None]


def train_updates(
    folder: Path,
    pictures: Sequence[Path],
    scratch: Path,
    recipe: Recipe,
    record: Mapping[str, object],
    report: Report,
) -> tuple[StoredUpdate, ...]:
    """Fit updates to folders of pictures and put them into a model of the store.

    Args:
        folder: of the model. pictures: folders of pictures, a group each.
        scratch: folder for what rounds have left. record: what the manifest says besides.

    Raises:
        BadParameter: a folder without pictures, or a rate without weights.
    """
    stored = load_model(folder)
    nets = rate_nets(stored, recipe.rates)
    groups = read_groups(pictures, stored, nets, recipe.tile, recipe.tiles, recipe.seed)
    scratch.mkdir(parents=True, exist_ok=True)
    fitting = _Fitting(stored, nets, groups, recipe, scratch, report)
    updates = fitting.run()
    made = [fitting.ready(name, u, record) for name, u in updates.items() if u.update().layers]
    publish_updates(folder, made)
    return tuple(made)


class _Fitting:
    """One run: its tiles, where they are sorted to, and what is known of a plain picture's loss."""

    def __init__(
        self,
        stored: StoredModel,
        nets: Mapping[int, RateNet],
        groups: Sequence[Group],
        recipe: Recipe,
        scratch: Path,
        report: Report,
    ) -> None:
        self._stored, self._nets, self._recipe = stored, nets, recipe
        self._scratch, self._report = scratch, report
        self._names = [group.name for group in groups]
        self._spent_s = dict.fromkeys(self._names, 0.0)
        self._members = {group.name: group.tiles for group in groups}
        self._digest = f"{stored.sha256} {digest_of(groups)} {recipe}"
        tiles = [tile for group in groups for tile in group.tiles]
        self._plain = {
            (picture, rate): float(np.mean([t.plain[rate] for t in tiles if t.picture == picture]))
            for picture in {tile.picture for tile in tiles}
            for rate in recipe.rates
        }

    def run(self) -> dict[str, DecoderUpdate]:
        """All rounds; the updates that serve a picture better than the others, by group."""
        updates = {name: self._fresh(k) for k, name in enumerate(self._names)}
        for number in range(self._recipe.rounds):
            for name in [n for n in self._names if self._members[n]]:
                self._fit(number, name, updates[name])
            self._sort(updates)
        return {name: u for name, u in updates.items() if self._members[name]}

    def ready(
        self, name: str, update: DecoderUpdate, record: Mapping[str, object]
    ) -> StoredUpdate:
        """An update as it is published."""
        tables = Tables(self._stored.entropy["tables"])
        data = write_update(update.update(), layer_shapes(self._stored.synthesis), tables)
        tiles, rates = self._members[name], self._recipe.rates
        change = np.mean([self._shares(update, tiles, r) - self._shares(None, tiles, r)
                          for r in rates])  # fmt: skip
        training = {
            **asdict(self._recipe),
            "pictures": len({t.picture for t in tiles}),
            "change_of_loss": round(float(change), 4),
            "cpu_minutes": round(self._spent_s[name] / 60, 1),
            **record,
        }
        return StoredUpdate(name, data, training)

    def _fresh(self, number: int) -> DecoderUpdate:
        seed = 1000 * self._recipe.seed + number
        generator = torch.Generator().manual_seed(seed)
        some = next(iter(self._nets.values()))
        return DecoderUpdate(some.transforms, self._recipe.rank, generator, CPU)

    def _fit(self, number: int, name: str, update: DecoderUpdate) -> None:
        """A round of one update, or what an earlier run left of it."""
        tiles = self._members[name]
        chosen = hashlib.sha256(b"".join(t.rgb.tobytes() for t in tiles)).hexdigest()
        digest = f"{self._digest} {number} {name} {chosen}"
        path = self._scratch / f"{number}-{name}.safetensors"
        spent_s = _load(path, digest, update) if path.is_file() else None
        if spent_s is None:
            began = time.process_time()
            self._optimise(number, name, update)
            spent_s = time.process_time() - began
            plain = {n: t.detach().clone() for n, t in update.tensors.items()}
            write_whole(path, save(plain, {"digest": digest, "cpu_s": f"{spent_s:.1f}"}))
        self._spent_s[name] += spent_s

    def _optimise(self, number: int, name: str, update: DecoderUpdate) -> None:
        recipe, tiles = self._recipe, self._members[name]
        steps, place = recipe.steps_of(number), self._names.index(name)
        at_rates = {rate: update.on(net.transforms) for rate, net in self._nets.items()}
        groups = update.groups(LearningRates())
        peaks = [recipe.lr * group["lr"] for group in groups]
        optimiser = torch.optim.Adam(groups, betas=BETAS)
        drawn = np.random.default_rng((recipe.seed, number, place)).integers(2**62)
        noise, mean = torch.Generator().manual_seed(int(drawn)), 0.0
        for step in range(steps):
            for group, peak in zip(optimiser.param_groups, peaks, strict=True):
                group["lr"] = peak * decayed(step / steps)
            rng = np.random.default_rng((recipe.seed, number, place, step))
            batch = [tiles[i] for i in rng.integers(len(tiles), size=recipe.batch)]
            rate = recipe.rates[step % len(recipe.rates)]
            error = self._distortion(at_rates[rate], batch, rate).mean()
            bits = update.bits(noise)
            optimiser.zero_grad()
            (error + recipe.price * bits).backward()
            optimiser.step()
            mean += (error.item() - mean) / min(step + 1, 30)
            if (step + 1) % 50 == 0 or step + 1 == steps:
                self._report(Progress(number, name, step + 1, steps, mean, bits.item()))

    def _distortion(
        self, update: DecoderUpdate | None, tiles: Sequence[Tile], rate: int
    ) -> Tensor:
        """lmbda·D of tiles as shares of their pictures' plain losses, [len(tiles)]."""
        net = self._nets[rate]
        y_hat = torch.from_numpy(np.stack([t.y_hat[rate] for t in tiles])).float() / 2**Y_FRAC
        rgb = torch.from_numpy(np.stack([t.rgb for t in tiles]))
        plain = torch.tensor([self._plain[t.picture, rate] for t in tiles])
        changed = {} if update is None else update.parameters()
        x_hat = torch.func.functional_call(net.g_s, changed, (y_hat,)) + 0.5
        error: Tensor = (x_hat.clamp(0, 1) * 255 - rgb).square().mean((1, 2, 3))
        return net.lmbda * error / plain

    @torch.no_grad()
    def _shares(self, update: DecoderUpdate | None, tiles: Sequence[Tile], rate: int) -> float:
        """Mean over tiles of what `_distortion` says."""
        at_rate = None if update is None else update.on(self._nets[rate].transforms)
        size = self._recipe.batch
        parts = [tiles[k : k + size] for k in range(0, len(tiles), size)]
        found = [self._distortion(at_rate, part, rate) for part in parts]
        return float(torch.cat(found).mean())

    def _sort(self, updates: Mapping[str, DecoderUpdate]) -> None:
        """Move every picture to the update with which it loses least, at the middle rate."""
        rate = self._recipe.rates[len(self._recipe.rates) // 2]
        tiles = [tile for name in self._names for tile in self._members[name]]
        tried = {n: u for n, u in updates.items() if self._members[n]}
        members: dict[str, list[Tile]] = {name: [] for name in self._names}
        for picture in sorted({tile.picture for tile in tiles}):
            own = [tile for tile in tiles if tile.picture == picture]
            shares = {name: self._shares(update, own, rate) for name, update in tried.items()}
            members[min(shares, key=lambda n: (shares[n], n))] += own
        self._members = {name: tuple(found) for name, found in members.items()}


def _load(path: Path, digest: str, update: DecoderUpdate) -> float | None:
    """Take over what a finished round left: its seconds of CPU; None where it is another run's."""
    with safe_open(path, framework="pt") as file:
        meta = file.metadata() or {}
        if meta.get("digest") != digest:
            return None
        with torch.no_grad():
            for name, tensor in update.tensors.items():
                tensor.copy_(file.get_tensor(name))
    return float(meta["cpu_s"])
