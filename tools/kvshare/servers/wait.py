"""Waiting for what a server, or the controller, is about to show."""

import time
from collections.abc import Callable
from typing import TypeVar

POLL_S = 0.2
T = TypeVar("T")


def poll(look: Callable[[], T], done: Callable[[T], bool], deadline_s: float) -> T:
    """Return what ``look`` sees as soon as it is ``done``, or what it saw last at the deadline."""
    end = time.monotonic() + deadline_s
    while not done(seen := look()) and time.monotonic() < end:
        time.sleep(POLL_S)
    return seen
