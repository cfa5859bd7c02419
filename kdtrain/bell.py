"""Bell: a file that trial processes touch when they have news, so that Tune's loop can rest meanwhile.

By itself that loop looks for news ten times a second, 4 to 8 ms of CPU time each: 5 % of a sweep on two cores.
"""

import time
from contextlib import suppress
from pathlib import Path

SETTLED_S = 1.0
"""After news Tune's loop runs as it likes: it has a result to judge, or a next trial to start."""
REST_S = 1.0
"""The longest rest: the death of a process rings no bell."""
POLL_S = 0.05


class Bell:
    """One for all trials of a sweep on one machine."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._heard: int | None = None
        self._heard_at = 0.0

    def ring(self) -> None:
        """There is news, or will be in a moment."""
        with suppress(FileNotFoundError):  # the sweep has ended, and its folder is gone
            self.file.touch()

    def rest(self) -> None:
        """Returns when it rings or after REST_S; at once before its first ring, and for SETTLED_S after each."""
        rung = self._rung()
        if rung != self._heard:
            self._heard, self._heard_at = rung, time.monotonic()
        now = time.monotonic()
        if rung is None or now < self._heard_at + SETTLED_S:
            return
        while self._rung() == rung and time.monotonic() < now + REST_S:
            time.sleep(POLL_S)

    def _rung(self) -> int | None:
        """When, in nanoseconds; None before the first time."""
        try:
            return self.file.stat().st_mtime_ns
        except FileNotFoundError:
            return None
