"""Fixtures for commands that work on the jobs of a database."""

from jobs.conftest import _numbers, make_place

__all__ = ["_numbers", "make_place"]
