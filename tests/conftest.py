"""A small model, engines with it, and pictures, shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

# Before torch is imported, and for the processes that tests start: several run at a time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402
from small_model import decode_only, photo_like, small_stored_model  # noqa: E402

from service.engine.engine import Engine  # noqa: E402
from service.images.write import write_image  # noqa: E402
from service.nets.model import Backbone  # noqa: E402
from service.picture import Picture  # noqa: E402
from service.runtime.loading import load_models  # noqa: E402
from service.runtime.pipeline import LoadedModel  # noqa: E402
from service.store.model import StoredModel  # noqa: E402
from service.store.write import write_model  # noqa: E402

# The same examples in every run; tests/fuzz/fuzz_decompress.py explores others.
settings.register_profile("rankpress", deadline=None, derandomize=True)
settings.load_profile("rankpress")


@dataclass(frozen=True)
class Small:
    """The small model in its three forms."""

    stored: StoredModel
    base: bytes
    backbone: Backbone


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny layers on many threads wait for one another more than they compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def torch_threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of torch's threads until the test ends."""
    yield torch.set_num_threads
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small() -> Small:
    return Small(*small_stored_model())


@pytest.fixture(scope="session")
def small_model(small: Small) -> StoredModel:
    return small.stored


@pytest.fixture(scope="session")
def loaded(small_model: StoredModel) -> LoadedModel:
    """Resident with torch on the CPU, transforms in float32."""
    return load_models((small_model,), "cpu", torch.float32)[0]


@pytest.fixture(scope="session", name="decode_only")
def decode_only_fixture(small_model: StoredModel) -> LoadedModel:
    """Resident with numpy alone."""
    return decode_only(small_model)


@pytest.fixture(scope="session")
def engine(loaded: LoadedModel) -> Engine:
    return Engine((loaded,))


@pytest.fixture(scope="session")
def numpy_engine(decode_only: LoadedModel) -> Engine:
    return Engine((decode_only,))


@pytest.fixture(scope="session")
def photo() -> Picture:
    return Picture(photo_like(75, 106, 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked gpu are skipped without a CUDA device."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with one small model at one rate, which takes no time to load."""
    root = tmp_path_factory.mktemp("store")
    stored, base, _ = small_stored_model()
    write_model(root / "small", stored, base)
    return root


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder with one small picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "0.png").write_bytes(write_image(Picture(photo_like(70, 96)), "png"))
    return folder


FULL = os.environ.get("RANKPRESS_FULL") == "1"
"""Whether a test that is skipped has failed, unless it needs a GPU or another platform."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, object]:
    report = yield
    excused = any(item.get_closest_marker(name) for name in ("gpu", "platform"))
    if not excused and not hasattr(report, "wasxfail"):
        fail_if_skipped(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, object]:
    report = yield
    fail_if_skipped(report)
    return report


def fail_if_skipped(report: pytest.TestReport | pytest.CollectReport) -> None:
    if FULL and report.skipped:
        report.outcome, report.longrepr = "failed", f"RANKPRESS_FULL=1: {report.longrepr}"
