"""The app in this process, without a network, and pictures to send to it."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
from fastapi import FastAPI
from PIL import Image

from service.api.service import Service
from service.engine.types import Codec
from service.server.app import create_app
from service.settings import Settings
from service.tracing.spans import Tracing

WIDTH, HEIGHT = 20, 12
PIXELS = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)


def png_of(pixels: np.ndarray) -> bytes:
    """A PNG file of [H, W, 3] uint8 pixels."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


PNG = png_of(PIXELS)


def pixels_of(data: bytes) -> np.ndarray:
    """[H, W, 3] uint8 pixels of an image file, read by Pillow."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


class Client(httpx.AsyncClient):
    """An HTTP client of an app, with the app and the service behind it."""

    app: FastAPI
    service: Service


@asynccontextmanager
async def running(
    codec: Codec, tracing: Tracing | None = None, **settings: Any
) -> AsyncIterator[Client]:
    """The app with its lifespan run, as a client sees it."""
    app = create_app(codec, Settings(**({"jobs": False} | settings)), tracing)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with Client(transport=transport, base_url="http://test") as client:
            client.app = app
            client.service = app.state.service
            yield client


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Return as soon as the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def ready(client: httpx.AsyncClient) -> None:
    """Return once /readyz says so."""
    async with asyncio.timeout(5):
        while (await client.get("/readyz")).status_code != 200:
            await asyncio.sleep(0.005)
