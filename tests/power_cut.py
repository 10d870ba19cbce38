"""A power cut at every change of a file, one after another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


class PowerCut(BaseException):
    pass


def cuts(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """Makes the n-th change of a file fail, half written, for n = 0, 1, ... until none is left."""
    real = {name: getattr(Path, name) for name in ("write_bytes", "replace", "unlink")}
    rename = os.replace
    for last in range(20):
        left = [last]

        def cut(name: str, left: list[int] = left) -> object:
            def call(self: Path, *args: object, **options: object) -> object:
                if left[0] == 0:
                    if name == "write_bytes":
                        real[name](self, args[0][: len(args[0]) // 2])  # type: ignore[index]
                    raise PowerCut
                left[0] -= 1
                return real[name](self, *args, **options)

            return call

        def cut_rename(source: Path, target: Path, left: list[int] = left) -> None:
            if left[0] == 0:
                os.truncate(source, source.stat().st_size // 2)
                raise PowerCut
            left[0] -= 1
            rename(source, target)

        for name in real:
            monkeypatch.setattr(Path, name, cut(name))
        monkeypatch.setattr(os, "replace", cut_rename)
        yield last
        if left[0] > 0:
            return
