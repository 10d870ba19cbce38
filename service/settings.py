"""Everything that can be set, in one frozen object that is passed down.

Values come from the constructor, then from the environment (`RANKPRESS_MAX_PIXELS=20000000`), then
from the defaults below. A bad value raises pydantic's ValidationError, which names the field.
Importable in the base install: no torch, no web framework.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

MIB = 1 << 20


class Settings(BaseSettings):
    """Settings of a server or a command. Immutable; build a new one to change a value."""

    model_config = SettingsConfigDict(
        env_prefix="RANKPRESS_",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    store: Path | None = None
    """Folder of the model store; None is the one that ships with the package."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run; auto takes a CUDA device if there is one."""

    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of one network call; 0 takes all cores."""

    check: bool = True
    """Decode every fresh stream and compare before it is handed out."""

    max_body_bytes: int = Field(default=64 * MIB, ge=1)
    """Bytes of the largest request body, multipart framing included."""

    max_pixels: int = Field(default=100_000_000, ge=1)
    """Pixels of the largest picture; a larger one is refused before it is decoded."""

    workers: int = Field(default=1, ge=1, le=256)
    """Requests worked on at the same time; each may hold one decoded picture in memory."""

    max_waiting: int = Field(default=64, ge=1)
    """Requests that may wait for a worker; one more is answered 503."""

    max_waiting_bytes: int = Field(default=512 * MIB, ge=1)
    """Bytes of bodies and answers held for all requests together before new ones get 503."""

    request_timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Seconds a request may wait and be worked on, its body once read, before it gets 503."""

    body_timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """Seconds a client may take to send a whole body before it gets 408."""

    stall_timeout_s: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    """Seconds without a byte from (408) or to (connection closed) a client in mid-body."""

    header_timeout_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Seconds an open connection may take to send a request's headers before it is closed."""

    drain_s: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    """Seconds that work in progress may take to finish after SIGTERM."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on."""

    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines that are written; debug adds health checks."""

    log_format: Literal["json", "text"] = "json"
    """One JSON object a line, or text for people."""

    @model_validator(mode="after")
    def _one_body_fits(self) -> Self:
        if self.max_waiting_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_waiting_bytes is {self.max_waiting_bytes}, "
                f"expected at least max_body_bytes ({self.max_body_bytes})"
            )
        return self
