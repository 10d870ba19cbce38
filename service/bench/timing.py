"""How everything is timed here: in rounds, in turns, and with the state of the machine.

The first round warms up and is not counted. Actions that are compared take turns, so that other
work of the machine disturbs them alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

from service.eval.machine import this_machine

if TYPE_CHECKING:
    from service.settings import Settings

SCHEMA: Final = 1
MIN_ROUNDS: Final = 3


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a call: median and 95th percentile over some rounds."""

    median: float
    p95: float


def rounds(most: int, budget_s: float) -> Iterator[int]:
    """Yield the number of each round: 0, which warms up, and at most `most` further ones.

    No further round begins `budget_s` after the first, once MIN_ROUNDS are done.
    """
    start = perf_counter()
    for number in range(most + 1):
        yield number
        if number >= MIN_ROUNDS and perf_counter() - start > budget_s:
            return


def time_in_turns(
    actions: Mapping[str, Callable[[int], object]], *, most: int, budget_s: float
) -> tuple[dict[str, Latency], int]:
    """Time every action once a round, see `rounds`; each is given the number of the round.

    Returns:
        The latencies by name, and over how many rounds they are.
    """
    times_ms: dict[str, list[float]] = defaultdict(list)
    number = 0
    for number in rounds(most, budget_s):
        for name, action in actions.items():
            begin = perf_counter()
            action(number)
            times_ms[name].append(1000 * (perf_counter() - begin))
    return {
        name: Latency(median(ms[1:]), quantiles(ms[1:], n=20, method="inclusive")[-1])
        for name, ms in times_ms.items()
    }, number


def measure(
    what: str,
    settings: Settings,
    progress: Callable[[str], None],
    run: Callable[[], Mapping[str, Any]],
) -> dict[str, Any]:
    """Run a benchmark and return its figures with the machine and its load before and after.

    Args:
        progress: see `conditions`. run: returns the figures as JSON values.
    """
    before = conditions(what, settings, progress)
    return {**before, **run(), "load_at_end": this_machine(settings.device).load}


def conditions(what: str, settings: Settings, progress: Callable[[str], None]) -> dict[str, Any]:
    """Return what a benchmark is and runs on, as JSON values.

    Args:
        progress: is called with a line of text if the machine is too busy for timings.
    """
    machine = this_machine(settings.device)
    if machine.load > machine.cores / 2:
        progress(f"the load of this machine is {machine.load}: the timings mean little")
    return {
        "what": what,
        "schema": SCHEMA,
        "machine": asdict(machine),
        "threads": settings.threads,
    }
