"""Export of a trained KL autoencoder and of default networks to the model store."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from safetensors.numpy import save as save_safetensors

from service.autoencoders.stored import NETWORKS, WEIGHTS, expected_tensors, read_autoencoder
from service.codec.overfit import LatentNetworks, plain_networks
from service.codec.sizes import AutoencoderSizes
from service.errors import BadParameter
from service.files import write_whole
from service.store.latent_networks import write_networks
from service.train.checkpoint import has_state, read_about, read_tensors


def export_autoencoder(run: Path, out: Path) -> None:
    """Write the averaged weights of a run as float16, with plain networks to start from.

    Args:
        run: folder of a run (train/autoencoder.py). out: folder, whose name is the autoencoder's.

    Raises:
        BadParameter: there is no run in the folder.
    """
    if not has_state(run):
        raise BadParameter(f"{run} holds no run of an autoencoder")
    sizes = AutoencoderSizes(**read_about(run)["sizes"])
    averaged = {n: t for n, t in read_tensors(run).items() if n.startswith("ema.")}
    tensors = {n.removeprefix("ema."): t.numpy().astype(np.float16) for n, t in averaged.items()}
    tensors = {name: tensors[name] for name in expected_tensors(sizes)}
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / WEIGHTS, save_safetensors(tensors))
    write_whole(out / NETWORKS, write_networks(plain_networks(sizes.channels)))
    read_autoencoder(out)


def export_networks(networks: LatentNetworks, path: Path) -> None:
    """Write default networks; streams that were fitted with others need those."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, write_networks(networks))
