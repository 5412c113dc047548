# SPDX-License-Identifier: MIT
"""Owns how a job in progress is shown: a bar on a terminal, plain lines elsewhere, nothing for programs.

It does not follow jobs. Everything goes to standard error, so that standard output holds the result alone.
"""

from contextlib import AbstractContextManager
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from snapd.cli.values import JobProgress
from snapd.cli.words import duration, printable, size

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID

LINE_STEP_PERCENT = 25


class Reporter(AbstractContextManager["Reporter"]):
    """Shows nothing; the base of those that do. It is entered before the job begins and left when it has ended."""

    def show(self, progress: JobProgress) -> None:
        """Show how far the job is; called with the same values again it does nothing new."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Remove what need not stay."""


class Lines(Reporter):
    """A line for each step, and for each quarter of it."""

    def __init__(self, domain: str, stream: TextIO) -> None:
        self._domain = domain
        self._stream = stream
        self._last = ("", 0)

    def show(self, progress: JobProgress) -> None:
        percent = int((progress.fraction or 0) * 100) // LINE_STEP_PERCENT * LINE_STEP_PERCENT
        now = (progress.step, percent)
        if not progress.step or now == self._last:
            return
        self._last = now
        facts = [self._domain, progress.step] + ([f"{percent} %"] if percent else [])
        print(printable("  ".join(facts)), file=self._stream, flush=True)


class Bar(Reporter):
    """A bar that is gone when the job has ended."""

    def __init__(self, domain: str, stream: TextIO) -> None:
        self._domain = printable(domain)
        self._stream = stream
        self._progress: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        # rich takes longer to import than most verbs take to be done; only this way of showing needs it.
        from rich.console import Console  # noqa: PLC0415
        from rich.markup import escape  # noqa: PLC0415
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415

        class Left(TimeRemainingColumn):
            """The time left, in words, when there is a rate to tell it from."""

            def render(self, task: "Task") -> Text:
                remaining_s = task.time_remaining
                if remaining_s is None or task.total is None:
                    return Text("")
                return Text(f"{duration(remaining_s) if remaining_s >= 60 else f'{remaining_s:.0f} s'} left")

        self._progress = Progress(
            TextColumn(escape(self._domain), markup=True),
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[percent]}", markup=False),
            TextColumn("{task.fields[written]}", markup=False),
            Left(),
            console=Console(file=self._stream),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None, percent="", written="")
        self._progress.start()
        return self

    def show(self, progress: JobProgress) -> None:
        if self._progress is None or self._task is None:
            return
        known = progress.fraction is not None
        self._progress.update(
            self._task,
            description=printable(progress.step),
            total=1.0 if known else None,
            completed=progress.fraction or 0.0,
            percent=f"{(progress.fraction or 0) * 100:3.0f} %" if known else "",
            written=size(progress.bytes) if progress.bytes else "",
        )

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def reporter(domain: str, stream: TextIO, *, silent: bool) -> Reporter:
    """Choose how the progress of a job on ``domain`` is shown on ``stream``."""
    if silent:
        return Reporter()
    return Bar(domain, stream) if stream.isatty() else Lines(domain, stream)
