"""All settings, in one frozen object that is passed down.

Values come from the constructor, else from the environment (`RANKPRESS_MAX_PIXELS=20000000`), else
from the defaults below. A wrong value raises pydantic's ValidationError, which names the field. The
base install can import this module: it needs neither torch nor a web framework.
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
"""Connections at a time at most, unless `max_connections` is set."""


class Settings(BaseSettings):
    """Settings of a server or a command. They are immutable."""

    model_config = SettingsConfigDict(
        env_prefix="RANKPRESS_",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    store: Path | None = None
    """Folder of the model store; None takes the one that ships with the package."""

    model: str | None = Field(default=None, min_length=1)
    """Name of the model that compresses where a request names none; None takes the one that
    store.json of the store names."""

    autoencoders: tuple[str, ...] = ()
    """Autoencoders of the package diffusers that latent streams may use, besides those of the
    store: folders, or ids of the Hugging Face hub."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device of the networks; auto takes a CUDA device if there is one."""

    threads: int = Field(default=0, ge=0, le=1024)
    """CPU threads of one network call; 0 takes all cores."""

    decode_only: bool = False
    """Only decode, with the light decoder, whether torch is installed or not."""

    check: bool = True
    """Decode the latents of every new stream and compare them before the stream is returned."""

    measure: bool = True
    """Decode the pixels of every checked stream too, and report their PSNR. A target of PSNR is
    measured in any case."""

    graphics: bool = True
    """Store blocks of text, drawings and flat colours exactly where that costs less."""

    max_body_bytes: int = Field(default=64 * MIB, ge=1)
    """Bytes of the largest request body, including multipart framing."""

    max_pixels: int = Field(default=100_000_000, ge=1)
    """Pixels of the largest picture, its sides rounded up to 16; a larger one is refused before it
    is decoded."""

    max_output_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Most seconds of one fast core to write an image file, estimated from format and size; a
    format that could take longer is not written."""

    max_output_memory_bytes: int = Field(default=1536 * MIB, ge=MIB)
    """Most bytes of memory to write an image file, including its pixels, estimated likewise."""

    workers: int = Field(default=1, ge=1, le=256)
    """Large requests that are processed at the same time, and as many small ones in addition; each
    may hold one decoded picture in memory."""

    max_batch: int = Field(default=0, ge=0, le=64)
    """Requests of one rate and size that are processed in one call; 0 takes the device's
    default."""

    batch_window_s: float = Field(default=0.002, ge=0, le=1, allow_inf_nan=False)
    """Seconds that a request may wait for others to be processed in the same call."""

    cache_bytes: int = Field(default=1024 * MIB, ge=0)
    """Bytes of merged weights of rates that are cached, in addition to the models themselves."""

    warm: bool = True
    """Merge the weights of all whole rates when a server starts, up to cache_bytes."""

    admin_token: SecretStr | None = Field(default=None, min_length=16)
    """Bearer token to load and unload rate adapters over HTTP; None allows it to nobody."""

    adapters: Path | None = None
    """Folder that keeps adapters loaded over HTTP; None loses them at a restart."""

    zoo: str | None = None
    """A CompressAI model and quality, such as mbt2018-mean-4, in place of the store."""

    zoo_adapters: Path | None = None
    """Folder of that model's rate adapters, `<rate>.safetensors`; the model itself is rate 4."""

    machine_key: Path | None = None
    """File of the key that signs streams of a CompressAI model; None is machine.key in `state`."""

    max_waiting: int = Field(default=128, ge=1)
    """Requests that may wait for a worker; one more is answered 503, or 429 if its client has its
    share of the places (client_share)."""

    max_wait_s: float = Field(default=10.0, gt=0)
    """Seconds that a request may be expected to wait, by the measured service time; one that would
    wait longer is answered 503 at once. Four requests per worker may always wait."""

    max_waiting_bytes: int = Field(default=512 * MIB, ge=1)
    """Bytes of bodies and answers in memory for all requests together; beyond, new ones get 503."""

    request_timeout_s: float = Field(default=120.0, gt=0, allow_inf_nan=False)
    """Seconds that a request may wait and be processed after its body was read; then it
    gets 503."""

    body_timeout_s: float = Field(default=300.0, gt=0, allow_inf_nan=False)
    """Seconds that a client may take to send a whole body, or else it gets 408, or to read an
    answer of more than 1 MiB, or else the connection is closed."""

    stall_timeout_s: float = Field(default=20.0, gt=0, allow_inf_nan=False)
    """Seconds without a byte in the middle of a body: from a client (then it gets 408) or to it
    (then the connection is closed)."""

    min_bytes_per_s: int = Field(default=4096, ge=0)
    """Bytes per second at which a client must send a body and read an answer. A client that is
    stall_timeout_s behind is dropped, however fast it was before; 0 only requires a byte within
    stall_timeout_s."""

    client_share: float = Field(default=0.5, gt=0, le=1)
    """Share that one client may take of what other clients leave: of requests at a time, places to
    wait, bytes in memory and in `spool`. It may always have one request. A client is an address, so
    all clients behind a proxy that is not in forwarded_allow_ips are one. 1 sets no limit."""

    spool: Path | None = None
    """Folder of nameless files for bodies of more than 1 MiB until they are complete, and for such
    answers until they are sent; None is the system's temporary folder. On a tmpfs they take
    memory."""

    max_spool_bytes: int = Field(default=1024 * MIB, ge=0)
    """Bytes of all files in `spool` together; beyond, requests get 503. 0 keeps all in memory."""

    max_connections: int = Field(default=0, ge=0, le=1_000_000)
    """Connections at a time, a sixteenth of them reserved for health checks; 0 takes as many as the
    limit of open files (`ulimit -n`) allows, at most 4096."""

    header_timeout_s: float = Field(default=10.0, gt=0, allow_inf_nan=False)
    """Seconds that a connection may take to send the headers of a request before it is closed."""

    drain_s: float = Field(default=30.0, ge=0, allow_inf_nan=False)
    """Seconds that requests in progress may take to finish after SIGTERM."""

    state: Path | None = None
    """Folder of data that outlive a restart; None is rankpress in $XDG_STATE_HOME or
    ~/.local/state."""

    objects_url: str = ""
    """Store of streams and of the files of jobs: a folder, or an s3://, gs:// or az:// URL. If
    empty, files of jobs are kept in a folder of `state`, and there is no `/objects`, `/pictures` or
    `/iiif`."""

    objects_timeout_s: float = Field(default=30.0, gt=0, allow_inf_nan=False)
    """Seconds that an attempt to call a bucket may take, and after which no further one begins."""

    objects_write: bool = False
    """Whether anyone who can reach the server may store streams by `PUT /objects`, and put, delete
    and list named pictures at `/pictures`."""

    picture_max_age_s: int = Field(default=60, ge=0, le=31_536_000)
    """Seconds for which a cache may keep the picture of a name: so late it may notice that the name
    has another stream."""

    picture_stale_s: int = Field(default=600, ge=0, le=31_536_000)
    """Seconds after that in which a cache may still serve it while it asks for the new one."""

    page: bool = True
    """Whether a server that compresses shows the page to try it at `/`, with `POST /compare`."""

    weights: bool = True
    """Whether the server offers, at `/weights`, the files that decoders of web pages need."""

    jobs: bool = True
    """Whether the server offers `POST /adapt` and its jobs."""

    jobs_url: str = Field(default="", repr=False)
    """Database of the jobs, a postgresql:// URL; if empty, an SQLite file in `state`."""

    jobs_worker: bool = True
    """Whether `rankpress serve` starts a worker process; if not, run `rankpress worker`."""

    job_threads: int = Field(default=1, ge=0, le=1024)
    """CPU threads of a worker's networks, at low priority; 0 takes all cores."""

    job_step_s: float = Field(default=2.0, gt=0, le=60, allow_inf_nan=False)
    """Seconds between checkpoints of a job: the work that is lost if a worker dies, and the time
    that a worker takes to stop."""

    job_max_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    """Seconds of work on one job, after which its best stream so far becomes the result."""

    job_max_pixels: int = Field(default=2**24, ge=1)
    """Pixels of the largest picture of a job, its sides rounded up to 16; a checkpoint takes about
    16 bytes for each."""

    job_attempts: int = Field(default=5, ge=1, le=100)
    """Tries of one step of a job, and workers that may die one after the other without progress of
    a job, before it fails. Failures because of an outage are not counted."""

    max_jobs_waiting: int = Field(default=100, ge=1)
    """Jobs that may wait for a worker; one more is answered 503."""

    result_ttl_s: float = Field(default=7 * 24 * 3600.0, gt=0, allow_inf_nan=False)
    """Seconds that an ended job and its result are kept; for as long again it is answered 410."""

    webhook_secret: SecretStr | None = None
    """Secret that signs webhooks, `whsec_` and 24 to 64 random bytes in base64; several, by spaces,
    while one is replaced. With it, anyone who can reach the server may name a URL that is called
    when a job ends; None offers no webhooks."""

    webhook_url: str = Field(default="", repr=False)
    """URL that is called when any job ends, besides the one that a request names; it needs
    `webhook_secret`."""

    webhook_private: bool = False
    """Whether webhooks may go to this machine and to private addresses."""

    host: str = Field(default="127.0.0.1", min_length=1)
    """Address to listen on."""

    port: int = Field(default=8000, ge=0, le=65535)
    """TCP port to listen on; 0 takes a free one."""

    uds: Path | None = None
    """UNIX socket to listen on, in place of `host` and `port`."""

    fd: int | None = Field(default=None, ge=0)
    """Descriptor of an inherited listening socket (systemd, circus), in place of these."""

    root_path: str = Field(default="", pattern="^(/[A-Za-z0-9._~-]+)*$")
    """Path prefix, such as /images, that a proxy adds to the service and removes from requests;
    links in answers begin with it."""

    forwarded_allow_ips: str = ""
    """Addresses or networks of proxies, by commas, or *, whose X-Forwarded-For and -Proto are
    trusted."""

    cors_origins: str = ""
    """Origins of web pages that may call the service, by commas, or *; empty allows all of
    them to read `/iiif`, `/weights` and `/web/decoder`, and nothing else."""

    allowed_hosts: str = ""
    """Names that the Host header may have, by commas (`localhost`, `*.example.org`). Empty allows
    any, as behind a proxy that checks it. Without a check, a page whose own name is resolved to
    this machine (DNS rebinding) counts as of the same origin, and may read all answers of a server
    that only this machine can reach. Health checks may have any name."""

    check_origin: bool = False
    """Refuse POST, PUT and DELETE from web pages of other origins than the Host of the request and
    `cors_origins`. Without this check, a page of any site, open in a browser that can reach the
    server, can make it process and store data, though it cannot read the answers. Off by default,
    because a proxy may change the Host."""

    keep_alive_s: float = Field(default=75.0, gt=0, allow_inf_nan=False)
    """Seconds that an idle connection stays open after an answer; load balancers keep theirs for up
    to 60."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Severity from which log lines are written; debug adds health checks and the
    files of the page."""

    log_format: Literal["json", "text"] = "json"
    """Log lines as JSON objects, or as text for people."""

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        """Raise ValueError for settings that exclude each other."""
        if self.max_waiting_bytes < self.max_body_bytes:
            raise ValueError(
                f"max_waiting_bytes is {self.max_waiting_bytes}, "
                f"expected at least max_body_bytes ({self.max_body_bytes})"
            )
        if self.uds is not None and self.fd is not None:
            raise ValueError("uds and fd are both set, expected one place to listen at")
        if self.objects_write and (self.decode_only or not self.objects_url):
            raise ValueError(
                "objects_write needs objects_url, and a server that is not decode_only"
            )
        return self

    @field_validator("cors_origins")
    @classmethod
    def _check_origins(cls, text: str) -> str:
        for origin in text.split(",") if text.strip() not in ("", "*") else ():
            if not re.fullmatch(r"https?://[^/,\s*]+", origin.strip()):
                raise ValueError(
                    f"origin is {origin.strip()!r}, expected https://example.org or the like"
                )
        return text

    @field_validator("allowed_hosts")
    @classmethod
    def _check_hosts(cls, text: str) -> str:
        for host in text.split(",") if text.strip() else ():
            if not re.fullmatch(r"(\*\.)?[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", host.strip()):
                raise ValueError(f"host is {host.strip()!r}, expected localhost or *.example.org")
        return text

    @property
    def connection_limit(self) -> int:
        """Connections at a time: as set, or as many as the limit of open files allows.

        Each connection may have a file of its body (`spool`), some dozens are accepted before the
        first can be refused, and the rest of the program needs files too.
        """
        if self.max_connections:
            return self.max_connections
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if files == resource.RLIM_INFINITY:
            return MOST_CONNECTIONS
        return min(MOST_CONNECTIONS, max(files // 4, (files - 192) // 2, 1))

    @property
    def state_folder(self) -> Path:
        """The folder of `state`, or its default.

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
                "RANKPRESS_STATE to a folder for lasting data, or RANKPRESS_JOBS=false"
            ) from error

    @property
    def objects_place(self) -> str:
        """Folder or URL of the object store."""
        return self.objects_url or str(self.state_folder / "objects")

    def as_environment(self) -> dict[str, str]:
        """Return environment variables that give a worker these settings, without the defaults.

        The admin's token is left out, because a worker does not need it. The secret of webhooks is
        in them as it is: show them to nobody.
        """
        secrets = {"admin_token", "webhook_secret"}  # a dump would have masked texts
        changed = self.model_dump(mode="json", exclude_defaults=True, exclude=secrets)
        if self.webhook_secret is not None:
            changed["webhook_secret"] = self.webhook_secret.get_secret_value()
        return {f"RANKPRESS_{name.upper()}": str(value) for name, value in changed.items()}
