"""The terminal of a sweep: one line of progress on it, and what Ray and its processes print in a log file."""

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from kdtrain.study.study import Study

PIPED_INTERVAL_S = 10.0
ENDED = ("complete", "pruned", "failed", "broken")


@contextmanager
def quiet(log: Path) -> Iterator[TextIO]:
    """Redirect descriptors 1 and 2 to `log` while the context lasts; yield the terminal.

    Ray's `verbose=0` leaves boxes and tracebacks, some printed by other processes, which inherit the descriptors.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush(), sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    with open(log, "ab") as file, os.fdopen(os.dup(saved_out), "w", encoding="utf-8") as terminal:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield terminal
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os.dup2(saved_out, 1)
            os.dup2(saved_err, 2)
            os.close(saved_out)
            os.close(saved_err)


class Display:
    """One live line about a study, below its remarks; in a pipe a line at each new stage and every ten seconds."""

    def __init__(self, study: "Study", terminal: TextIO) -> None:
        self.study = study
        self.console = Console(file=terminal)
        self.stage_started: dict[str, tuple[float, int]] = {}
        self.stopped = threading.Event()
        self.last_line = ""
        self.remarks_shown = 0

    @contextmanager
    def shown(self) -> Iterator[None]:
        thread = threading.Thread(target=self._follow, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self.stopped.set()
            thread.join(timeout=2)

    def _follow(self) -> None:
        if self.console.is_terminal:
            with Live(console=self.console, get_renderable=self._line, redirect_stdout=False, redirect_stderr=False):
                while not self.stopped.wait(0.2):
                    self._print_remarks()
                self._print_remarks()
            return
        stage, printed = "", 0.0
        while not self.stopped.wait(0.2):
            self._print_remarks()
            now = time.monotonic()
            if self.study.stage != stage or now - printed > PIPED_INTERVAL_S:
                stage, printed = self.study.stage, now
                self._print()
        self._print_remarks()
        self._print()

    def _print_remarks(self) -> None:
        for remark in self.study.remarks[self.remarks_shown :]:
            self.console.print(remark, soft_wrap=True, highlight=False, markup=False)
            self.remarks_shown += 1

    def _print(self) -> None:
        line = self.line()
        if line != self.last_line:
            self.console.print(line, soft_wrap=True, highlight=False)
            self.last_line = line

    def _line(self) -> Table:
        grid = Table.grid()
        grid.add_row(self.line())
        return grid

    def line(self) -> str:
        """Return `search 7/24 | running 2, complete 5, ... | best val/accuracy 0.9312 | 0:41 left in this stage`."""
        state = self.study.progress()
        if not state["of"]:
            return str(state["stage"])
        ended = sum(state[name] for name in ENDED)
        counts = ", ".join(f"{name} {state[name]}" for name in ("running", *ENDED))
        parts = [f"{state['stage']} {ended}/{state['of']}", counts]
        if state["best"] is not None:
            parts.append(f"best {self.study.sweep.study.objective} {state['best']:.4f}")
        if state["budget"] is not None:
            parts.append(f"budget {state['budget']}")
        left = self._seconds_left(state["stage"], ended, state["of"])
        if left is not None:
            parts.append(f"{int(left) // 60}:{int(left) % 60:02d} left in this stage")
        return " | ".join(parts)

    def _seconds_left(self, stage: str, ended: int, of: int) -> float | None:
        """Return the rest of this stage at its pace since it was first seen; None before anything has ended."""
        started, ended_before = self.stage_started.setdefault(stage, (time.monotonic(), ended))
        done = ended - ended_before
        return (time.monotonic() - started) / done * (of - ended) if done else None
