"""The main function of a worker process with the fake adapter."""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import dbos  # noqa: F401  (the fork server imports it once for all workers)

from jobs.fake_adapter import FakeAdapter
from service.jobs import heartbeat, storage_outages, upkeep, worker
from service.logs import configure_logs
from service.settings import Settings
from service.webhooks import delivery


def main(
    folder: Path,
    settings: Settings,
    hasty: bool,
    stuck: bool,
    follow_up_s: float,
    variables: dict[str, str],
    options: dict[str, Any],
) -> None:
    """Work until killed or stopped; what is written to standard error goes to a file."""
    os.environ.update(variables)
    errors = os.open(folder / "worker.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(errors, 2)
    sys.stderr = os.fdopen(2, "w", buffering=1)
    if hasty:  # a minute is long for a test
        heartbeat.BEAT_S, heartbeat.LOST_S = 0.2, 1.0
    storage_outages.FIRST_PAUSE_S, storage_outages.LONGEST_PAUSE_S = 0.05, 0.2
    worker.NICENESS = 1  # else a busy machine's tests wait for ever
    worker.POLL_S = 0.1
    upkeep.FOLLOW_UP_S = upkeep.END_WRITTEN_S = follow_up_s
    delivery.PAUSES_S = (0.1, 0.1, 0.1)
    if stuck:
        upkeep.expire = partial(expire_for_ever, folder / "expiring")
    configure_logs(settings.log_format, settings.log_level)
    worker.run_worker(lambda: FakeAdapter(folder, **options), settings)


def expire_for_ever(marker: Path, *_: object) -> int:
    """An expiry that never ends, as with a slow bucket."""
    marker.touch()
    time.sleep(3600)
    return 0
