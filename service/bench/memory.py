"""Peak memory of compressing and decompressing one picture, each in a process of its own.

`python -m service.bench.memory compress FILE RATE DEVICE STORE OUT` does the work of one command,
file to file, and prints its peaks as JSON. The peak is the kernel's VmHWM; ru_maxrss of a child
process starts at the size of its parent, so it is used only where there is no /proc.
"""

from __future__ import annotations

import io
import json
import re
import resource
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from service.engine.opening import open_engine
from service.eval.pictures import generate
from service.images.read import read_image
from service.images.write import write_image
from service.picture import U8
from service.settings import MIB, Settings

MAX_PIXELS = 10**9


def measure(
    sizes: Sequence[tuple[int, int]], rate: float, settings: Settings
) -> list[dict[str, float]]:
    """Return the peak MiB of compress and decompress for each size, on generated pictures.

    A picture much smaller than a tile shows what the process needs for itself.
    """
    results = []
    arguments = [f"{rate:g}", settings.device, str(settings.store or "")]
    with TemporaryDirectory() as folder:
        for width, height in sizes:
            image, stream = Path(folder, "image.png"), Path(folder, "stream.rkp")
            image.write_bytes(as_png(generate(width, height).rgb))
            compress = run_fresh("service.bench.memory", "compress", image, stream, *arguments)
            out = Path(folder, "out.png")
            decompress = run_fresh("service.bench.memory", "decompress", stream, out, *arguments)
            results.append(
                {
                    "width": width,
                    "height": height,
                    "compress_mib": compress["done"],
                    "decompress_mib": decompress["pixels"],
                    "decompress_to_png_mib": decompress["done"],
                    "loaded_mib": compress["loaded"],
                }
            )
    return results


def as_png(rgb: U8) -> bytes:
    """Return pixels [H, W, 3] as a PNG file of little compression."""
    out = io.BytesIO()
    Image.fromarray(rgb).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def peak_mib() -> float:
    """Return the most memory in MiB that this process has held so far."""
    status = Path("/proc/self/status")
    peak = re.search(r"^VmHWM:\s+(\d+)", status.read_text() if status.is_file() else "", re.M)
    if peak:
        return int(peak[1]) / 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB


def run_fresh(module: str, *arguments: object) -> dict[str, float]:
    """Run a module in a fresh process and return the JSON of the last line that it prints."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main(command_name: str, source: str, target: str, rate: str, device: str, store: str) -> None:
    """Compress or decompress one file and print the peaks in MiB as JSON."""
    values = {"store": store or None, "device": device, "max_pixels": MAX_PIXELS}
    engine = open_engine(Settings.model_validate(values))
    peaks = {"loaded": peak_mib()}
    data = Path(source).read_bytes()
    if command_name == "compress":
        picture = read_image(data, max_pixels=MAX_PIXELS)
        del data
        written = engine.compress(picture, float(rate)).data
    else:
        picture = engine.decompress(data).picture
        peaks["pixels"] = peak_mib()
        written = write_image(picture, "png")
    Path(target).write_bytes(written)
    peaks["done"] = peak_mib()
    sys.stdout.write(json.dumps(peaks) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
