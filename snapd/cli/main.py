# SPDX-License-Identifier: MIT
"""Owns the command line of ``domsnap``: verbs, options, questions, exit codes.

It neither speaks D-Bus (``client``) nor words results (``render``).

- Exit codes: 0 done, 1 refused or failed, 2 usage, 3 the service cannot be reached, 4 not authorized.
- Standard output holds the result, standard error all else.
- What takes long to import is imported by what needs it, so that help and completion are quick.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from snapd.cli import progress, render
from snapd.cli.values import Domain, Snapshot, below

if TYPE_CHECKING:
    from snapd.cli.client import Service

Result = TypeVar("Result")


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


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print results for programs.")
@click.option(
    "--bus",
    envvar="DOMSNAP_BUS",
    default="system",
    show_default=True,
    metavar="system|session|ADDRESS",
    help="The bus that the service is on; also from DOMSNAP_BUS.",
)
@click.version_option(package_name="domsnapd", prog_name="domsnap")
@click.pass_context
def main(context: click.Context, as_json: bool, bus: str) -> None:
    """Take, list, revert to and delete snapshots of virtual machines."""
    context.obj = Settings(as_json, bus)


@main.command()
@click.pass_obj
def domains(settings: Settings) -> None:
    """List the domains."""
    rows = _with_service(settings, lambda service: service.domains())
    _result(settings, {"domains": [asdict(each) for each in rows]}, lambda: render.domain_table(rows))


@main.command(name="list")
@click.argument("domain")
@click.pass_obj
def list_(settings: Settings, domain: str) -> None:
    """Show the snapshots of DOMAIN as a tree."""

    async def fetch(service: "Service") -> tuple[Domain, list[Snapshot]]:
        return await service.domain(domain), await service.snapshots(domain)

    about, snapshots = _with_service(settings, fetch)
    values = {"domain": asdict(about), "snapshots": [asdict(each) for each in snapshots]}
    _result(settings, values, lambda: render.snapshot_tree(about, snapshots, _now_usec()))


@main.command()
@click.argument("domain")
@click.argument("snapshot", required=False)
@click.pass_obj
def show(settings: Settings, domain: str, snapshot: str | None) -> None:
    """Show everything about SNAPSHOT, or about DOMAIN."""
    if snapshot is None:
        about = _with_service(settings, lambda service: service.domain(domain))
        _result(settings, {"domain": asdict(about)}, lambda: render.domain_details(about))
    else:
        one = _with_service(settings, lambda service: service.snapshot(domain, snapshot))
        _result(settings, {"snapshot": asdict(one)}, lambda: render.snapshot_details(one, _now_usec()))


@main.command()
@click.argument("domain")
@click.argument("name", required=False, default="")
@click.option("--description", metavar="TEXT", default="", help="A text to keep with it.")
@click.option(
    "--live",
    type=click.Choice(["auto", "require", "no"]),
    help="Whether the guest goes on while its memory is saved; else as the service is configured, which is auto by default.",
)
@click.pass_obj
def create(settings: Settings, domain: str, name: str, description: str, live: str | None) -> None:
    """Take a snapshot of DOMAIN; without NAME it is called after the time."""
    options = {key: value for key, value in (("live", live), ("description", description)) if value}

    async def work(service: "Service") -> tuple[Snapshot, float]:
        began = time.monotonic()
        with _reporter(settings, domain) as shown:
            made = await service.run_job("CreateSnapshot", domain, name, options, shown.show)
        took_s = time.monotonic() - began
        return await service.snapshot(domain, made), took_s

    snapshot, took_s = _with_service(settings, work)
    values = {"result": "done", "snapshot": asdict(snapshot), "duration_s": round(took_s, 3)}
    _result(settings, values, lambda: render.created(snapshot, took_s))


@main.command()
@click.argument("domain")
@click.argument("snapshot")
@click.option("--paused", is_flag=True, help="Leave the guest paused.")
@click.option("--running", is_flag=True, help="Let the guest run, even if it was paused.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def revert(settings: Settings, domain: str, snapshot: str, paused: bool, running: bool, yes: bool) -> None:
    """Take DOMAIN back to SNAPSHOT. What has changed since and is in no snapshot is lost."""
    state = _one_of({"paused": paused, "running": running}, otherwise="as-taken")
    if _must_ask(yes):
        target = _with_service(settings, lambda service: service.snapshot(domain, snapshot))
        _ask(render.revert_question(domain, target, _now_usec()))

    async def work(service: "Service") -> tuple[Domain, Snapshot, float]:
        began = time.monotonic()
        with _reporter(settings, domain) as shown:
            await service.run_job("RevertSnapshot", domain, snapshot, {"state": state}, shown.show)
        took_s = time.monotonic() - began
        return await service.domain(domain), await service.snapshot(domain, snapshot), took_s

    about, target, took_s = _with_service(settings, work)
    values = {"result": "done", "domain": asdict(about), "snapshot": asdict(target), "duration_s": round(took_s, 3)}
    _result(settings, values, lambda: render.reverted(about, target.name, took_s))


@main.command()
@click.argument("domain")
@click.argument("snapshot")
@click.option("--children", is_flag=True, help="Delete all snapshots below it as well.")
@click.option("--only-children", is_flag=True, help="Delete all snapshots below it and keep it.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(settings: Settings, domain: str, snapshot: str, children: bool, only_children: bool, yes: bool) -> None:
    """Delete SNAPSHOT of DOMAIN; the guest and the other snapshots stay as they are."""
    scope = _one_of(
        {"tree": children, "children": only_children}, otherwise="one", names={"tree": "children", "children": "only-children"}
    )

    async def look(service: "Service") -> tuple[Snapshot, list[str]]:
        return await service.snapshot(domain, snapshot), below(await service.snapshot_rows(domain), snapshot)

    target, names_below = _with_service(settings, look)
    if _must_ask(yes):
        _ask(render.delete_question(domain, target, names_below, scope, _now_usec()))

    async def work(service: "Service") -> float:
        began = time.monotonic()
        with _reporter(settings, domain) as shown:
            await service.run_job("DeleteSnapshot", domain, snapshot, {"scope": scope}, shown.show)
        return time.monotonic() - began

    took_s = _with_service(settings, work)
    gone = {"one": [snapshot], "tree": [snapshot, *names_below], "children": names_below}[scope]
    values = {"result": "done", "deleted": gone, "duration_s": round(took_s, 3)}
    _result(settings, values, lambda: render.deleted(snapshot, names_below, scope, took_s))


def _with_service(settings: Settings, work: Callable[["Service"], Awaitable[Result]]) -> Result:
    """Connect, do the work, and leave with the right sentence and exit code when that is not possible."""
    from snapd.cli import client  # noqa: PLC0415  (see the last line of the module's docstring)

    async def connected() -> Result:
        async with client.connected(settings.bus) as service:
            return await work(service)

    try:
        return asyncio.run(connected())
    except client.ServiceUnreachable as error:
        _fail(settings, Exit.UNREACHABLE, error.name, str(error))
    except client.CallFailed as error:
        _fail(settings, Exit.DENIED if error.denied else Exit.FAILED, error.name, str(error))
    except client.StoppedWaiting as error:
        _fail(settings, Exit.FAILED, "", str(error))
    except KeyboardInterrupt:
        _fail(settings, Exit.FAILED, "", "Stopped before anything was asked of the service.")


def _fail(settings: Settings, code: Exit, name: str, sentence: str) -> NoReturn:
    click.echo(f"domsnap: {render.printable(sentence)}", err=True)
    if settings.as_json:
        click.echo(json.dumps({"error": {"name": name, "message": sentence}}, ensure_ascii=False))
    raise click.exceptions.Exit(code)


def _result(settings: Settings, values: dict[str, Any], words: Callable[[], str]) -> None:
    click.echo(json.dumps(values, ensure_ascii=False, indent=2) if settings.as_json else words())


def _reporter(settings: Settings, domain: str) -> progress.Reporter:
    return progress.reporter(domain, sys.stderr, silent=settings.as_json)


def _must_ask(yes: bool) -> bool:
    return not yes and sys.stdin.isatty()


def _ask(question: str) -> None:
    # Asked outside of the event loop: inside, Ctrl-C would cancel its task and never reach the terminal's read.
    if not click.confirm(question, err=True):
        click.echo("domsnap: Nothing was done.", err=True)
        raise click.exceptions.Exit(Exit.FAILED)


def _one_of(flags: dict[str, bool], otherwise: str, names: dict[str, str] | None = None) -> str:
    """Return the value whose flag is set; ``names`` are the options' names where they differ from the values."""
    chosen = [value for value, is_set in flags.items() if is_set]
    if len(chosen) > 1:
        shown = " and ".join(f"--{(names or {}).get(value, value)}" for value in chosen)
        raise click.UsageError(f"{shown} exclude each other.")
    return chosen[0] if chosen else otherwise


def _now_usec() -> int:
    return time.time_ns() // 1000


if __name__ == "__main__":
    main()
