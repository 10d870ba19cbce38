"""Who may import whom, and what a decoder can do without."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from conftest import Small

from service.engine.engine import Engine
from service.picture import Picture
from service.store.write import write_model

SERVICE = Path(__file__).parent.parent / "service"
COMMON = {"picture"}

LAYERS: tuple[str, ...] = (
    "errors", "picture", "ms_ssim", "settings", "files", "logs", "blobs", "codec", "images",
    "tracing", "client", "store", "nets", "transforms", "runtime", "autoencoders", "adapt",
    "engine", "maps", "bulk", "names", "webhooks", "jobs", "http", "web", "api", "server",
    "pillow", "datasets", "zoo", "eval", "train", "rates", "export", "bench", "cli", "__main__",
)  # fmt: skip
"""The parts of service/, each after all that it may import."""

SERVING = {"names", "webhooks", "jobs", "http", "web", "api", "server", "bulk"}

MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "picture": set(),
    "ms_ssim": COMMON,
    "settings": set(),
    "files": set(),
    "logs": set(),
    "blobs": set(),
    "tracing": {"settings"},
    "client": set(),
    "codec": COMMON,
    "images": COMMON | {"files"},
    "store": {"codec", "files"},
    "nets": {"codec", "store"},
    "transforms": COMMON | {"codec", "nets", "store"},
    "runtime": COMMON | {"ms_ssim", "codec", "store", "transforms"},
    "autoencoders": COMMON | {"codec", "store", "nets", "transforms", "runtime", "files"},
    "adapt": COMMON | {"codec", "nets", "store", "transforms", "runtime", "autoencoders"},
    "engine": COMMON
    | {"codec", "images", "store", "transforms", "runtime", "autoencoders", "adapt", "settings"},
    "maps": COMMON | {"engine", "runtime", "nets", "codec", "images", "store"},
    "bulk": COMMON | {"engine", "images", "codec", "store", "blobs", "files", "settings"},
    "names": {"blobs", "settings"},
    "webhooks": {"blobs", "settings"},
    "jobs": COMMON
    | {"engine", "adapt", "images", "blobs", "settings", "names", "webhooks", "tracing"},
    "http": {"engine", "images", "settings", "logs", "tracing"},
    "web": {"files", "http"},
    "api": COMMON
    | {"engine", "adapt", "runtime", "images", "blobs", "settings", "logs", "tracing"}
    | {"names", "webhooks", "jobs", "http", "maps"},
    "server": {"engine", "jobs", "http", "web", "api", "blobs", "settings", "logs", "tracing"},
    "pillow": COMMON | {"codec", "engine", "images", "settings"},
    "datasets": COMMON | {"images", "files"},
    "eval": COMMON | {"ms_ssim", "images", "codec", "autoencoders", "adapt", "engine", "files"},
    "bench": set(LAYERS) - SERVING - {"cli"},
    "train": COMMON | {"images", "files", "codec", "nets", "store", "datasets", "eval"},
    "rates": set(LAYERS) - SERVING - {"cli", "bench", "export", "zoo"},
    "export": set(LAYERS) - SERVING - {"cli", "bench", "zoo"},
    "zoo": COMMON | {"codec", "images", "engine", "transforms", "runtime", "datasets"},
    "cli": set(LAYERS),
    "__main__": {"cli"},
}
"""What each part may import, besides errors: the import column of the architecture."""

WEB = {"fastapi", "starlette", "uvicorn", "prometheus_client", "python_multipart"}


def unit_of(module: str) -> str:
    """The part of the architecture that "service.codec.coder" belongs to."""
    return module.split(".")[1]


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(SERVICE.parent).with_suffix("").parts)


def imports(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module_of(path).split(".")[: -node.level]
                base = ".".join([*parents, base]).rstrip(".")
            if base == "service":
                yield from (f"service.{alias.name}" for alias in node.names)
            else:
                yield base


FILES = sorted(p for p in SERVICE.rglob("*.py") if p != SERVICE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_file_imports_only_what_its_column_allows(path: Path) -> None:
    unit = unit_of(module_of(path))
    allowed = MAY_IMPORT[unit] | {"errors", unit}
    ours = {unit_of(name) for name in imports(path) if name.startswith("service.")}
    assert ours <= allowed, f"{unit} must not import {sorted(ours - allowed)}"


def test_imports_run_one_way() -> None:
    """Every part stands after what it imports, so that there is no circle."""
    used: dict[str, set[str]] = {unit: set() for unit in LAYERS}
    for path in FILES:
        unit = unit_of(module_of(path))
        used[unit] |= {unit_of(n) for n in imports(path) if n.startswith("service.")} - {unit}
    for place, unit in enumerate(LAYERS):
        assert used[unit] <= set(LAYERS[:place]), unit


def test_folders_are_small_enough_to_read() -> None:
    """The data path shows in the listing: few modules at the top, no crowded folder."""
    top = [p for p in SERVICE.glob("*.py") if not p.name.startswith("__")]
    assert len(top) <= 8, top
    for folder in {p.parent for p in FILES} - {SERVICE}:
        modules = [p for p in folder.glob("*.py") if p.name != "__init__.py"]
        assert len(modules) <= 14, folder


def test_a_class_name_has_one_meaning() -> None:
    places: dict[str, list[str]] = {}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(module_of(path))
    assert {name: where for name, where in places.items() if len(where) > 1} == {}


def test_the_walk_over_imports_sees_every_form(tmp_path: Path) -> None:
    """The test above would pass in silence if it saw nothing."""
    found = {unit_of(n) for f in FILES for n in imports(f) if n.startswith("service.")}
    assert {"codec", "engine", "images", "store", "nets", "errors"} <= found
    odd = tmp_path / "odd.py"
    odd.write_text("import a.b\nfrom service import images, errors\ndef f():\n from x.y import z\n")
    assert list(imports(odd)) == ["a.b", "service.images", "service.errors", "x.y"]


def third_party(path: Path) -> set[str]:
    names = {name.split(".")[0] for name in imports(path)}
    return names - set(sys.stdlib_module_names) - {"service"}


def test_the_format_needs_four_packages_only() -> None:
    used = set().union(*(third_party(f) for f in FILES if unit_of(module_of(f)) == "codec"))
    assert used == {"numpy", "constriction", "google_crc32c", "PIL"}


def test_only_the_api_knows_the_web_framework() -> None:
    users = {unit_of(module_of(f)) for f in FILES if third_party(f) & WEB}
    assert users <= {"http", "web", "api", "server", "cli"}


def test_only_the_export_writes_onnx() -> None:
    """Serving opens the graphs that lie with a model."""
    users = {unit_of(module_of(f)) for f in FILES if "onnx" in third_party(f)}
    assert users == {"export"}


WITHOUT = """
import sys
from pathlib import Path

MISSING = {"torch", "onnx", "compressai", "fastapi", "starlette", "uvicorn"}

class Without:
    '''A finder that does not find some packages, as if they were not installed.'''
    def __init__(self, finder):
        self.finder = finder
    def __getattr__(self, name):
        return getattr(self.finder, name)
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in MISSING:
            return None
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def run_python(code: str, *arguments: str) -> str:
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        cwd=SERVICE.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


DECODE = """
import pkgutil
import service.codec
for module in pkgutil.iter_modules(service.codec.__path__, "service.codec."):
    __import__(module.name)
import numpy as np
from service.engine.opening import open_engine
from service.settings import Settings
folder = Path(sys.argv[1])
engine = open_engine(Settings(store=folder / "store"))
engine.self_test()
picture = engine.decompress((folder / "photo.rkp").read_bytes()).picture
np.savez(folder / "out.npz", rgb=picture.rgb, alpha=picture.alpha)
loaded = {name.split(".")[0] for name in sys.modules}
parts = {".".join(name.split(".")[:2]) for name in sys.modules if name.startswith("service.")}
print(sorted(loaded & {*MISSING, "onnxruntime"}), sorted(parts))
"""


@pytest.mark.parametrize("onnx_runtime", [True, False])
def test_a_stream_decodes_where_neither_torch_nor_a_web_framework_is_installed(
    tmp_path: Path,
    small: Small,
    engine: Engine,
    numpy_engine: Engine,
    photo: Picture,
    onnx_runtime: bool,
) -> None:
    """Through ONNX Runtime, which the base install has, and in numpy where there is none."""
    write_model(tmp_path / "store" / "small", small.stored, small.base)
    alpha = photo.rgb[..., 0]
    data = engine.compress(Picture(photo.rgb, alpha), 4).data
    (tmp_path / "photo.rkp").write_bytes(data)
    missing = "" if onnx_runtime else "MISSING.add('onnxruntime')\n"
    said = run_python(WITHOUT + missing + DECODE, str(tmp_path))
    assert said.startswith("['onnxruntime'] " if onnx_runtime else "[] ")
    assert "service.train" not in said and "service.api" not in said
    assert "service.nets" not in said
    out = np.load(tmp_path / "out.npz")
    expected = numpy_engine.decompress(data).picture
    off = np.abs(out["rgb"].astype(int) - expected.rgb)
    assert off.max() <= (1 if onnx_runtime else 0)
    assert np.array_equal(out["alpha"], alpha)
