"""A model store on disk that takes no time to load."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_model import small_stored_model

from service.train.publish import write_model


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a store with one small model at one rate."""
    root = tmp_path_factory.mktemp("store")
    stored, base, _ = small_stored_model()
    write_model(root / "small", stored, base)
    return root
