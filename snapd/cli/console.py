# SPDX-License-Identifier: MIT
"""Owns how a verb of the tool runs: connecting, printing the result or the failure, asking, and the exit code.

Not here: which verbs there are (``main``, ``verbs``) and how results are worded (``render``, ``sentences``).

- Exit codes: 0 done, 1 refused or failed, 2 usage, 3 the service cannot be reached, 4 not authorized.
- Standard output holds the result, standard error all else.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from snapd.cli import progress
from snapd.cli.words import printable

if TYPE_CHECKING:
    from snapd.cli.client import Service

Result = TypeVar("Result")
Explain = Callable[[str, str], str]
"""Returns, for the name of an error and the service's sentence, what a person is told."""


class Exit(IntEnum):
    """Exit codes; 2 is click's own for usage errors."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    UNREACHABLE = 3
    DENIED = 4


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options."""

    as_json: bool
    bus: str


def with_service(
    settings: Settings, work: Callable[["Service"], Awaitable[Result]], explain: Explain = lambda _, sentence: sentence
) -> Result:
    """Connect, do the work, and leave with the right sentence and exit code when that is not possible."""
    from snapd.cli import client  # noqa: PLC0415  (it takes long to import, and help and completion need none of it)

    async def connected() -> Result:
        async with client.connected(settings.bus) as service:
            return await work(service)

    try:
        return asyncio.run(connected())
    except client.ServiceUnreachable as error:
        _fail(settings, Exit.UNREACHABLE, error.name, str(error))
    except client.CallFailed as error:
        _fail(settings, Exit.DENIED if error.denied else Exit.FAILED, error.name, explain(error.name, str(error)))
    except client.StoppedWaiting as error:
        _fail(settings, Exit.FAILED, "", str(error))
    except KeyboardInterrupt:
        _fail(settings, Exit.FAILED, "", "Stopped before anything was asked of the service.")


def result(settings: Settings, values: dict[str, Any], words: Callable[[], str]) -> None:
    """Print the result, for programs or for people."""
    click.echo(json.dumps(values, ensure_ascii=False, indent=2) if settings.as_json else words())


def reporter(settings: Settings, domain: str) -> progress.Reporter:
    """Choose how the progress of a job is shown."""
    return progress.reporter(domain, sys.stderr, silent=settings.as_json)


def must_ask(yes: bool) -> bool:
    """Return whether somebody is there to be asked and wants to be."""
    return not yes and sys.stdin.isatty()


def ask(question: str) -> None:
    """Go on only if the answer is yes; it is asked outside of the event loop.

    Inside, Ctrl-C would cancel the loop's task and never reach the terminal's read.
    """
    if not click.confirm(question, err=True):
        click.echo("domsnap: Nothing was done.", err=True)
        raise click.exceptions.Exit(Exit.FAILED)


def now_usec() -> int:
    """Return the time, in microseconds since the epoch."""
    return time.time_ns() // 1000


def _fail(settings: Settings, code: Exit, name: str, sentence: str) -> NoReturn:
    click.echo(f"domsnap: {printable(sentence)}", err=True)
    if settings.as_json:
        click.echo(json.dumps({"error": {"name": name, "message": sentence}}, ensure_ascii=False))
    raise click.exceptions.Exit(code)
