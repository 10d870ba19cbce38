"""The places, workers and databases of the tests of jobs."""

from __future__ import annotations

from jobs.conftest import _numbers, make_place, no_settings_from_outside, postgres_server

__all__ = ["_numbers", "make_place", "no_settings_from_outside", "postgres_server"]
