"""Everything that can be set, in one frozen object that is passed down.

Values come from the constructor, then from the environment (`RANKPRESS_MAX_PIXELS=20000000`), then
from the defaults below. A bad value raises pydantic's ValidationError, which names the field.
Importable in the base install: no torch, no web framework.
"""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from service.errors import BadParameter

MIB = 1 << 20

MOST_CONNECTIONS = 4096
"""Connections that are taken where nothing else is set, however many files may be open."""


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

    model: str | None = Field(default=None, min_length=1)
    """Name of the model that compresses; None is the one that the store's store.json names."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the networks run; auto takes a CUDA device if there is one."""

    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of one network call; 0 takes all cores."""

    decode_only: bool = False
    """Serve decoding alone, with the light decoder, torch or not."""

    check: bool = True
    """Decode every fresh stream and compare before it is handed out."""

    max_body_bytes: int = Field(default=64 * MIB, ge=1)
    """Bytes of the largest request body, multipart framing included."""

    max_pixels: int = Field(default=100_000_000, ge=1)
    """Pixels of the largest picture, its sides rounded up to 16; a larger one is refused before it
    is decoded."""

    max_output_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Seconds of one fast core that writing an image file may take by its format and size, at
    worst; a format that would take longer is not written."""

    max_output_memory_bytes: int = Field(default=1536 * MIB, ge=MIB)
    """Bytes of memory, its pixels included, that writing an image file may take likewise."""

    workers: int = Field(default=1, ge=1, le=256)
    """Large requests worked on at the same time, and as many small ones beside them; each may hold
    one decoded picture in memory."""

    max_batch: int = Field(default=0, ge=0, le=64)
    """Requests of one rate and size worked on in one call; 0 takes what suits the device."""

    batch_window_s: float = Field(default=0.002, ge=0, le=1, allow_inf_nan=False)
    """Seconds a request may wait for others to share a call with, where batches are taken."""

    cache_bytes: int = Field(default=1024 * MIB, ge=0)
    """Bytes of merged weights of rates that are kept besides the models themselves."""

    warm: bool = True
    """Merge the weights of all whole rates when a server starts, as far as cache_bytes go."""

    admin_token: SecretStr | None = Field(default=None, min_length=16)
    """Bearer token that loads and unloads rate adapters over HTTP; without one nobody can."""

    adapters: Path | None = None
    """Folder that keeps adapters loaded over HTTP; without one a restart forgets them."""

    zoo: str | None = None
    """A CompressAI model and quality, mbt2018-mean-4, in place of the store; see zoo_adapters."""

    zoo_adapters: Path | None = None
    """Folder of that model's rate adapters, `<rate>.safetensors`; it itself is rate 4."""

    machine_key: Path | None = None
    """File of the key that signs such a model's streams; None is machine.key in `state`."""

    max_waiting: int = Field(default=128, ge=1)
    """Requests that may wait for a worker; one more is answered 503, or 429 where one client has
    its part of the places (client_share)."""

    max_wait_s: float = Field(default=10.0, gt=0)
    """Seconds that a request may have to wait, by the measured service time, before it gets 503 at
    once; four requests a worker may always wait."""

    max_waiting_bytes: int = Field(default=512 * MIB, ge=1)
    """Bytes of bodies and answers held for all requests together before new ones get 503."""

    request_timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Seconds a request may wait and be worked on, its body once read, before it gets 503."""

    body_timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """Seconds a client may take to send a whole body before it gets 408, or to read an answer of
    more than 1 MiB before the connection is closed."""

    stall_timeout_s: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    """Seconds without a byte from (408) or to (connection closed) a client in mid-body."""

    min_bytes_per_s: int = Field(default=4096, ge=0)
    """Bytes a second at which a body must arrive and an answer be read: a client that falls
    stall_timeout_s behind is given up, however fast it was before; 0 asks for one byte in time."""

    client_share: float = Field(default=0.5, gt=0, le=1)
    """Part of what other clients leave (of requests at a time, places to wait, bytes in memory and
    in `spool`) that one client may take; it may always have one request. A client is an address, so
    all are one behind a proxy that is not in forwarded_allow_ips. 1 sets no limit."""

    spool: Path | None = None
    """Folder of bodies of more than 1 MiB until they are complete, and of such answers until they
    are sent, in files without a name; None is the system's temporary folder. On a tmpfs they take
    memory all the same."""

    max_spool_bytes: int = Field(default=1024 * MIB, ge=0)
    """Bytes of all such files together before more get 503; 0 keeps all in memory."""

    max_connections: int = Field(default=0, ge=0, le=1_000_000)
    """Connections at a time, a sixteenth of them kept for health checks; 0 takes what the limit of
    open files (`ulimit -n`) leaves room for, at most 4096."""

    header_timeout_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Seconds an open connection may take to send a request's headers before it is closed."""

    drain_s: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    """Seconds that work in progress may take to finish after SIGTERM."""

    state: Path | None = None
    """Folder of what outlives a restart; None is rankpress in $XDG_STATE_HOME or ~/.local/state."""

    objects_url: str = ""
    """Where streams and jobs' files are kept: a folder, s3://, gs:// or az:// URL. If empty: jobs'
    in a folder of `state`, and no `/objects`."""

    objects_timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Seconds that an attempt to call a bucket may take, and after which no other is begun."""

    objects_write: bool = False
    """Whether `PUT /objects` keeps streams for anyone who can reach the server."""

    jobs: bool = True
    """Whether `POST /adapt` and its jobs are offered."""

    jobs_url: str = Field(default="", repr=False)
    """Database of the jobs, postgresql://…; empty is an SQLite file in `state`."""

    jobs_worker: bool = True
    """Whether `rankpress serve` runs a worker process of its own; else run `rankpress worker`."""

    job_threads: int = Field(default=1, ge=0, le=1024)
    """CPU threads of a worker's networks, at low priority; 0 takes all cores."""

    job_step_s: float = Field(default=2.0, gt=0, le=60, allow_inf_nan=False)
    """Seconds of work between checkpoints: lost when a worker dies, waited for when one stops."""

    job_max_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    """Seconds of work on one job, after which its best stream so far is the result."""

    job_max_pixels: int = Field(default=2**24, ge=1)
    """Pixels of the largest picture that a job takes, its sides rounded up to 16; a checkpoint has
    about 16 bytes for each."""

    job_attempts: int = Field(default=5, ge=1, le=100)
    """Times that one step of a job is tried, and workers that may die at it in a row without any
    progress, before the job has failed. What fails because of an outage is not counted."""

    max_jobs_waiting: int = Field(default=100, ge=1)
    """Jobs that may wait for a worker; one more is answered 503."""

    result_ttl_s: float = Field(default=7 * 24 * 3600.0, gt=0, allow_inf_nan=False)
    """Seconds that an ended job and its result are kept; as long again it is answered 410."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on."""

    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one."""

    uds: Path | None = None
    """UNIX socket to listen on, in place of `host` and `port`."""

    fd: int | None = Field(default=None, ge=0)
    """Descriptor of a listening socket that was inherited (systemd, circus), in place of them."""

    root_path: str = Field(default="", pattern="^(/[A-Za-z0-9._~-]+)*$")
    """Path that a proxy offers the service under, such as /images, and takes off; links have it."""

    forwarded_allow_ips: str = ""
    """Addresses or networks of proxies, by commas, or *, whose X-Forwarded-For and -Proto count."""

    cors_origins: str = ""
    """Origins of web pages that may call the service, by commas, or *; none if empty."""

    allowed_hosts: str = ""
    """Names that the Host header may have, by commas (`localhost`, `*.example.org`); any if empty,
    as behind a proxy that checks it. Without a check, a page whose own name is made to lead to this
    machine (DNS rebinding) counts as of the same origin, and may read all answers of a server that
    only this machine can reach. Health checks may have any name."""

    check_origin: bool = False
    """Refuse POST, PUT and DELETE of web pages of other origins than the Host asked and
    `cors_origins`. Without this check a page of any site, open in a browser that can reach the
    server, can have it work and keep things, though not read the answers. Off by default, because a
    proxy may change the Host."""

    keep_alive_s: float = Field(default=75.0, gt=0, allow_inf_nan=False)
    """Seconds an idle connection stays open after an answer; load balancers wait for up to 60."""

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

    @model_validator(mode="after")
    def _one_place_to_listen_at(self) -> Self:
        if self.uds is not None and self.fd is not None:
            raise ValueError("uds and fd are both set, expected one place to listen at")
        return self

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, text: str) -> str:
        """Raise ValueError unless each is a scheme and host, or all is *."""
        for origin in text.split(",") if text.strip() not in ("", "*") else ():
            if not re.fullmatch(r"https?://[^/,\s*]+", origin.strip()):
                raise ValueError(f"{origin.strip()!r} is no origin such as https://example.org")
        return text

    @field_validator("allowed_hosts")
    @classmethod
    def _hosts(cls, text: str) -> str:
        """Raise ValueError unless each is a name or an address, without scheme and port."""
        for host in text.split(",") if text.strip() else ():
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", host.strip()):
                raise ValueError(f"{host.strip()!r} is no host such as localhost or *.example.org")
        return text

    @model_validator(mode="after")
    def _objects_are_somewhere(self) -> Self:
        if self.objects_write and (self.decode_only or not self.objects_url):
            raise ValueError(
                "objects_write needs objects_url, and a server that is not decode_only"
            )
        return self

    @property
    def connection_limit(self) -> int:
        """Connections at a time: as set, or what the limit of open files leaves room for.

        A connection may have a file of its body (`spool`), some dozens are accepted before the
        first can be refused, and the rest of the program needs some files too.
        """
        if self.max_connections:
            return self.max_connections
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            return MOST_CONNECTIONS
        return min(MOST_CONNECTIONS, max(files // 4, (files - 192) // 2, 1))

    @property
    def state_folder(self) -> Path:
        """The folder that `state` names or stands for.

        Raises:
            BadParameter: `state` is not set, and there is no home folder.
        """
        if self.state is not None:
            return self.state.absolute()
        if given := os.environ.get("XDG_STATE_HOME"):
            return Path(given) / "rankpress"
        try:
            return Path.home() / ".local" / "state" / "rankpress"
        except RuntimeError as error:
            raise BadParameter(
                "there is no home folder (HOME is not set, and the user has none): set "
                "RANKPRESS_STATE to a folder for what outlives a restart, or RANKPRESS_JOBS=false"
            ) from error

    @property
    def objects_place(self) -> str:
        """Folder or URL of the objects."""
        return self.objects_url or str(self.state_folder / "objects")

    def as_environment(self) -> dict[str, str]:
        """The variables that give a worker these settings, where they are not defaults.

        It answers no requests, so the admin's token is not among them: masked, as it is dumped,
        it would not even be a valid one.
        """
        given = self.model_dump(mode="json", exclude_defaults=True, exclude={"admin_token"})
        return {f"RANKPRESS_{name.upper()}": str(value) for name, value in given.items()}
