"""The arrangement for many machines, started for real: RANKPRESS_ARRANGEMENT=1 pytest tests/deploy.

Not by default: a dozen processes start, and a machine with little to spare makes it fail by time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from deploy.arrangement import started, what_is_missing
from deploy.checks import CHECKS, CheckState


@pytest.fixture(scope="module")
def state() -> Iterator[CheckState]:
    if "1" not in {os.environ.get(f"RANKPRESS_{name}") for name in ("ARRANGEMENT", "FULL")}:
        pytest.skip("runs with RANKPRESS_ARRANGEMENT=1 or RANKPRESS_FULL=1")
    reason = what_is_missing()
    if reason is not None:
        pytest.skip(reason)
    with started() as arrangement:
        state = CheckState(arrangement)
        yield state
        state.client.close()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_many_machines(state: CheckState, check: Callable[[CheckState], None]) -> None:
    check(state)
