"""Fitting ready updates of g_s, one per kind of picture, for effort 0 of adaptation.

    rankpress train updates DRAWINGS SCREENS PHOTOS --model model_store/light --scratch runs/updates

One update is used at all rates: its factors are in units of the weights' rows and columns
(codec/lowrank.py), and it is fitted to latents of a few rates in turn. The folders give the first
groups of pictures. After each round every picture moves to the update that lowers its loss most,
and all updates are fitted further (k-means with updates as centres). The loss of a picture is
divided by its loss without an update, so that no picture or rate outweighs the others. Streams do
not contain ready updates, so their bytes have a small price, which keeps the store small.

The update of a round is written when it is fitted, and a run that is interrupted resumes after the
last one written; random draws are functions of (seed, round, group, step).
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

from service.adapt.decoder_update import DecoderUpdate, UpdateLearningRates
from service.adapt.plan import decayed
from service.codec.coder import Tables
from service.codec.entropy_model import Y_FRAC
from service.codec.model_stream import write_update
from service.files import write_whole
from service.rates.tiles import (
    CodedTile,
    RateSynthesis,
    TileGroups,
    digest_of,
    rate_networks,
    read_groups,
)
from service.store.model import StoredModel, StoredUpdate, layer_shapes
from service.store.read import load_model
from service.store.write import publish_updates

BETAS = (0.9, 0.99)
"""Decay rates of Adam's moments, as in adaptation."""


@dataclass(frozen=True)
class UpdateRecipe:
    """How the updates are fitted."""

    rates: tuple[int, ...] = (2, 4, 6)  # of the PSNR ladder, used in turn
    rank: int = 4  # largest rank of a layer's update
    rounds: int = 2  # of fitting updates and regrouping pictures
    steps: int = 300  # of the first round; other rounds have half as many
    batch: int = 4  # tiles per step
    tile: int = 256  # side of a tile in pixels
    tiles: int = 48  # number of tiles per folder
    lr: float = 2.0  # factor of adaptation's learning rates
    price: float = 1e-7  # share of the loss that one bit of an update must save
    seed: int = 0  # of tiles, draws and initial factors

    def steps_of(self, number: int) -> int:
        """Return the number of steps of a round; rounds are counted from 0."""
        return self.steps if number == 0 else self.steps // 2


@dataclass(frozen=True)
class UpdateProgress:
    """One progress report."""

    round: int
    group: str
    step: int
    steps: int
    loss: float  # running mean of lmbda·D over the loss without an update
    bits: float  # estimated size of the update


def train_updates(
    folder: Path,
    pictures: Sequence[Path],
    scratch: Path,
    recipe: UpdateRecipe,
    record: Mapping[str, object],
    report: Callable[[UpdateProgress], None],
) -> tuple[StoredUpdate, ...]:
    """Fit updates to folders of pictures, and publish them in the folder of a model.

    Args:
        pictures: folders of pictures; each is a group at first.
        scratch: folder for the updates of finished rounds.
        record: further entries of the manifest.
        report: called every 50 steps.

    Raises:
        BadParameter: a folder has no pictures, or the model does not have a rate.
    """
    stored = load_model(folder)
    networks = rate_networks(stored, recipe.rates)
    groups = read_groups(pictures, stored, networks, recipe.tile, recipe.tiles, recipe.seed)
    scratch.mkdir(parents=True, exist_ok=True)
    fitting = _Fitting(stored, networks, groups, recipe, scratch, report)
    fitted = fitting.run()
    updates = [fitting.stored(name, u, record) for name, u in fitted.items() if u.update().layers]
    publish_updates(folder, updates)
    return tuple(updates)


class _Fitting:
    """One run: its tiles, their groups, and the loss of each picture without an update."""

    def __init__(
        self,
        stored: StoredModel,
        networks: Mapping[int, RateSynthesis],
        groups: TileGroups,
        recipe: UpdateRecipe,
        scratch: Path,
        report: Callable[[UpdateProgress], None],
    ) -> None:
        self._stored, self._networks, self._recipe = stored, networks, recipe
        self._scratch, self._report = scratch, report
        self._names = list(groups)
        self._spent_s = dict.fromkeys(self._names, 0.0)
        self._members = groups
        fields = ", ".join(f"{name}={value!r}" for name, value in asdict(recipe).items())
        self._digest = f"{stored.sha256} {digest_of(groups)} Recipe({fields})"
        tiles = [tile for group in groups.values() for tile in group]
        self._plain = {
            (picture, rate): float(np.mean([t.plain[rate] for t in tiles if t.picture == picture]))
            for picture in {tile.picture for tile in tiles}
            for rate in recipe.rates
        }

    def run(self) -> dict[str, DecoderUpdate]:
        """Do all rounds, and return the updates of the groups that have pictures, by name."""
        updates = {name: self._new_update(k) for k, name in enumerate(self._names)}
        for number in range(self._recipe.rounds):
            for name in [n for n in self._names if self._members[n]]:
                self._fit(number, name, updates[name])
            self._regroup(updates)
        return {name: u for name, u in updates.items() if self._members[name]}

    def stored(
        self, name: str, update: DecoderUpdate, record: Mapping[str, object]
    ) -> StoredUpdate:
        """Return an update in the form in which it is published."""
        tables = Tables(self._stored.entropy["tables"])
        data = write_update(update.update(), layer_shapes(self._stored.synthesis), tables)
        tiles, rates = self._members[name], self._recipe.rates
        changes = [self._share(update, tiles, r) - self._share(None, tiles, r) for r in rates]
        training = {
            **asdict(self._recipe),
            "pictures": len({t.picture for t in tiles}),
            "change_of_loss": round(float(np.mean(changes)), 4),
            "cpu_minutes": round(self._spent_s[name] / 60, 1),
            **record,
        }
        return StoredUpdate(name, data, training)

    def _new_update(self, number: int) -> DecoderUpdate:
        seed = 1000 * self._recipe.seed + number
        generator = torch.Generator().manual_seed(seed)
        network = next(iter(self._networks.values()))
        return DecoderUpdate(network.transforms, self._recipe.rank, generator, torch.device("cpu"))

    def _fit(self, number: int, name: str, update: DecoderUpdate) -> None:
        """Fit one update for a round, or load it from the scratch folder."""
        tiles = self._members[name]
        pixels = hashlib.sha256(b"".join(t.rgb.tobytes() for t in tiles)).hexdigest()
        digest = f"{self._digest} {number} {name} {pixels}"
        path = self._scratch / f"{number}-{name}.safetensors"
        spent_s = _load(path, digest, update) if path.is_file() else None
        if spent_s is None:
            began = time.process_time()
            self._optimise(number, name, update)
            spent_s = time.process_time() - began
            tensors = {n: t.detach().clone() for n, t in update.tensors.items()}
            write_whole(path, save(tensors, {"digest": digest, "cpu_s": f"{spent_s:.1f}"}))
        self._spent_s[name] += spent_s

    def _optimise(self, number: int, name: str, update: DecoderUpdate) -> None:
        recipe, tiles = self._recipe, self._members[name]
        steps, place = recipe.steps_of(number), self._names.index(name)
        at_rates = {rate: update.on(net.transforms) for rate, net in self._networks.items()}
        groups = update.groups(UpdateLearningRates())
        peaks = [recipe.lr * group["lr"] for group in groups]
        optimiser = torch.optim.Adam(groups, betas=BETAS)
        noise_seed = np.random.default_rng((recipe.seed, number, place)).integers(2**62)
        noise, mean = torch.Generator().manual_seed(int(noise_seed)), 0.0
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
                self._report(UpdateProgress(number, name, step + 1, steps, mean, bits.item()))

    def _distortion(
        self, update: DecoderUpdate | None, tiles: Sequence[CodedTile], rate: int
    ) -> Tensor:
        """lmbda·D of tiles over their pictures' losses without an update, [len(tiles)]."""
        net = self._networks[rate]
        y_hat = torch.from_numpy(np.stack([t.y_hat[rate] for t in tiles])).float() / 2**Y_FRAC
        rgb = torch.from_numpy(np.stack([t.rgb for t in tiles]))
        plain = torch.tensor([self._plain[t.picture, rate] for t in tiles])
        changed = {} if update is None else update.parameters()
        x_hat = torch.func.functional_call(net.g_s, changed, (y_hat,)) + 0.5
        error: Tensor = (x_hat.clamp(0, 1) * 255 - rgb).square().mean((1, 2, 3))
        return net.lmbda * error / plain

    @torch.no_grad()
    def _share(self, update: DecoderUpdate | None, tiles: Sequence[CodedTile], rate: int) -> float:
        """Mean of `_distortion` over tiles, computed a batch at a time."""
        at_rate = None if update is None else update.on(self._networks[rate].transforms)
        size = self._recipe.batch
        parts = [tiles[k : k + size] for k in range(0, len(tiles), size)]
        return float(torch.cat([self._distortion(at_rate, part, rate) for part in parts]).mean())

    def _regroup(self, updates: Mapping[str, DecoderUpdate]) -> None:
        """Move every picture to the update that gives it the least loss at the middle rate."""
        rate = self._recipe.rates[len(self._recipe.rates) // 2]
        tiles = [tile for name in self._names for tile in self._members[name]]
        candidates = {n: u for n, u in updates.items() if self._members[n]}
        members: dict[str, list[CodedTile]] = {name: [] for name in self._names}
        for picture in sorted({tile.picture for tile in tiles}):
            cut = [tile for tile in tiles if tile.picture == picture]
            shares = {name: self._share(update, cut, rate) for name, update in candidates.items()}
            members[min(shares, key=lambda n: (shares[n], n))] += cut
        self._members = members


def _load(path: Path, digest: str, update: DecoderUpdate) -> float | None:
    """Load the update of a finished round.

    Returns:
        Its seconds of CPU time; None if the file is of another run.
    """
    with safe_open(path, framework="pt") as file:
        meta = file.metadata() or {}
        if meta.get("digest") != digest:
            return None
        with torch.no_grad():
            for name, tensor in update.tensors.items():
                tensor.copy_(file.get_tensor(name))
    return float(meta["cpu_s"])
