"""Deliveries of webhooks: durable, retried for about a day, and never in the way of jobs.

Every attempt is a workflow of its own in a queue of its own. One that fails queues the next with a
delay, so that a delivery that waits takes no thread, belongs to no worker, and survives the death
of all of them. A worker that dies in an attempt leaves it to be repeated. So a message arrives at
least once, always with the same id, by which receivers recognise it.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Final

import structlog

from service.webhooks.addresses import destination_of
from service.webhooks.posting import Answer, PostFailed, post
from service.webhooks.signing import Signer

if TYPE_CHECKING:
    from dbos import DBOSClient, EnqueueOptions

QUEUE: Final = "webhooks"
WORKFLOW: Final = "deliver"

AT_ONCE: Final = 8
"""Attempts that one worker makes at the same time."""

AT_ONCE_PER_HOST: Final = 2
"""Those of them that go to one host, so that a slow receiver leaves room for the others."""

PAUSES_S: tuple[float, ...] = (5, 30, 120, 600, 1800, 3600, 7200, 14400, 28800, 28800)
"""Seconds between the attempts, 23.7 hours together. After the last one a delivery is given up."""

JITTER: Final = 0.2
"""Greatest share by which a pause is longer or shorter, so that attempts do not come in waves."""

LONGEST_PAUSE_S: Final = 8 * 3600.0
"""Longest pause that a receiver may ask for with Retry-After."""

GONE: Final = 410
"""The status by which a receiver says that it wants no further attempt."""

log = structlog.get_logger("rankpress.webhooks")


@dataclass(frozen=True)
class Delivery:
    """One attempt to tell one receiver of one event.

    Attributes:
        id: of the message, the same in all attempts. body: the message, a JSON document.
        attempt: number of the attempt, from 1.
    """

    id: str
    url: str
    body: str
    attempt: int = 1

    @property
    def host(self) -> str:
        """Name or address of the receiver. Raises BadParameter: as `destination_of`."""
        return destination_of(self.url).host


def first_delivery(url: str, kind: str, ended_s: float, data: Mapping[str, Any]) -> Delivery:
    """The first attempt to tell a URL of the end of a job; the same end has the same id.

    Args:
        kind: of the event, such as "job.succeeded". ended_s: Unix time of the end.
        data: JSON values about the job; `job` is its id and `name`, if there, that of its picture.
    """
    timestamp = datetime.fromtimestamp(ended_s, UTC).isoformat()
    event = json.dumps([url, data["job"], data.get("name"), timestamp])
    message = {"type": kind, "timestamp": timestamp, "data": dict(data)}
    return Delivery(f"msg_{sha256(event.encode()).hexdigest()[:32]}", url, json.dumps(message))


class Deliverer:
    """Makes attempts. Use from many threads is allowed."""

    def __init__(self, signer: Signer | None, *, allow_private: bool = False) -> None:
        """Sign with `signer`; without one, every attempt fails. See `post` for the other."""
        self._signer, self._allow_private = signer, allow_private
        self._tls = ssl.create_default_context()

    def attempt(self, delivery: Delivery) -> float | None:
        """Send a message once.

        Returns:
            Seconds after which to try again; None if it was delivered, is no longer wanted, or was
            tried often enough.
        """
        values = {"id": delivery.id, "host": delivery.host, "attempt": delivery.attempt}
        try:
            answer = self._post(delivery)
        except PostFailed as error:
            return _pause(delivery, values | {"reason": str(error)}, None)
        except Exception:  # the top of a worker's attempt: a bug must lose no message
            log.exception("unexpected error in a webhook", **values)
            return _pause(delivery, values | {"reason": "internal error"}, None)
        values["status"] = answer.status
        if 200 <= answer.status < 300:
            log.info("webhook delivered", **values)
            return None
        if answer.status == GONE:
            log.warning("webhook no longer wanted", **values)
            return None
        return _pause(delivery, values, answer.retry_after_s)

    def _post(self, delivery: Delivery) -> Answer:
        if self._signer is None:
            raise PostFailed("this worker has no RANKPRESS_WEBHOOK_SECRET")
        body = delivery.body.encode()
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "rankpress-webhooks",
            **self._signer.headers(delivery.id, int(time.time()), body),
        }
        destination = destination_of(delivery.url)
        return post(destination, body, headers, self._tls, allow_private=self._allow_private)


def enqueue(client: DBOSClient, delivery: Delivery, version: str) -> None:
    """Queue the first attempt of a delivery, unless the same message is or was queued before.

    Args:
        version: of the workers that may make it.

    Raises:
        DBOSException, SQLAlchemyError: the database does not answer.
        BadParameter: as `destination_of`.
    """
    client.enqueue(_options(delivery, version), asdict(delivery))


def register_queue(client: DBOSClient, poll_s: float) -> None:
    """Write the limits of the queue, which each worker reads every `poll_s` seconds."""
    client.register_queue(
        QUEUE,
        worker_concurrency=AT_ONCE,
        partition_worker_concurrency=AT_ONCE_PER_HOST,
        polling_interval_sec=poll_s,
    )


def register_workflow(deliverer: Deliverer, version: str) -> None:
    """Let DBOS call the deliverer for every attempt that this process takes from the queue."""
    from dbos import DBOS

    @DBOS.workflow(name=WORKFLOW)
    def deliver(values: dict[str, Any]) -> None:
        delivery = Delivery(**values)
        pause_s = deliverer.attempt(delivery)
        if pause_s is not None:
            later = replace(delivery, attempt=delivery.attempt + 1)
            options = _options(later, version) | {"delay_seconds": pause_s}
            DBOS.enqueue_workflow_with_options(options, asdict(later))


def _options(delivery: Delivery, version: str) -> EnqueueOptions:
    return {
        "queue_name": QUEUE,
        "workflow_name": WORKFLOW,
        "workflow_id": f"{delivery.id}-{delivery.attempt}",
        "queue_partition_key": delivery.host,
        "app_version": version,
        "priority": delivery.attempt,  # news before repetitions
    }


def _pause(delivery: Delivery, values: dict[str, Any], wanted_s: float | None) -> float | None:
    """The pause after an attempt that failed, None after the last.

    Args:
        values: for the log. wanted_s: what the receiver asked for; the pause is not shorter, up to
            `LONGEST_PAUSE_S`.
    """
    if delivery.attempt > len(PAUSES_S):
        log.error("webhook given up", **values)
        return None
    planned_s = PAUSES_S[delivery.attempt - 1] * random.uniform(1 - JITTER, 1 + JITTER)
    pause_s = round(max(planned_s, min(wanted_s or 0.0, LONGEST_PAUSE_S)), 3)
    log.warning("webhook failed", **values, again_in_s=pause_s)
    return pause_s
