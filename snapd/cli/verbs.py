# SPDX-License-Identifier: MIT
"""Owns the verbs that take long, create, revert and delete, and ``plan``, which says what they would do.

Not here: their options (``options``) and the short verbs (``main``).

- Whatever the service refuses, it refuses before a question is asked.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from snapd.bus.names import ERROR_PREFIX
from snapd.cli import console, options, render, sentences
from snapd.cli.console import Settings
from snapd.cli.sentences import Reverted
from snapd.cli.values import PROTECTED, Domain, JobEnd, Snapshot, SnapshotRow, below, undo_points

if TYPE_CHECKING:
    from snapd.cli.client import Service

_UNDO_STEP = "Write down undo point "
"""How the step of a plan begins that keeps an undo point, and no other."""

_yes = click.option("--yes", "-y", is_flag=True, help="Do not ask.")


@click.command()
@click.argument("domain")
@click.argument("name", required=False, default="")
@options.create_options
@click.pass_obj
def create(settings: Settings, /, domain: str, name: str, **given: Any) -> None:
    """Take a snapshot of DOMAIN.

    Without NAME it is called after the time. What is not said is as the service is configured.
    """
    chosen = options.as_create(given)

    async def work(service: "Service") -> tuple[Snapshot, JobEnd]:
        with console.reporter(settings, domain) as shown:
            end = await service.run_job("CreateSnapshot", domain, name, chosen, shown.show)
        return await service.snapshot(domain, end.snapshot or name), end

    snapshot, end = console.with_service(settings, work)
    values = {"snapshot": asdict(snapshot)}
    console.result(settings, _done(values, end), lambda: sentences.created(snapshot, end))


@click.command()
@click.argument("domain")
@click.argument("snapshot", required=False)
@options.revert_options
@_yes
@click.pass_obj
def revert(settings: Settings, /, domain: str, snapshot: str | None, yes: bool, **given: Any) -> None:
    """Take DOMAIN back to SNAPSHOT.

    What is not in a snapshot is kept as an undo point, unless --no-undo is given or the service is configured so. The next
    revert replaces the undo point.
    """
    name, chosen = options.as_revert(snapshot, given)
    if console.must_ask(yes):

        async def look(service: "Service") -> tuple[list[str], Domain, Snapshot]:
            steps = await service.plan("revert", domain, name, chosen)
            target = name or undo_points(await service.snapshot_rows(domain))[-1]
            return steps, await service.domain(domain), await service.snapshot(domain, target)

        steps, about, target = console.with_service(settings, look)
        keeps_undo = any(each.startswith(_UNDO_STEP) for each in steps)
        console.ask(
            sentences.revert_question(
                about, target, keeps_undo=keeps_undo, keeps_memory="undo-memory" in chosen, now_usec=console.now_usec()
            )
        )

    async def work(service: "Service") -> tuple[Reverted, Snapshot | None]:
        before = await service.domain(domain)
        points = undo_points(await service.snapshot_rows(domain))
        with console.reporter(settings, domain) as shown:
            end = await service.run_job("RevertSnapshot", domain, name, chosen, shown.show)
        kept = [each for each in undo_points(await service.snapshot_rows(domain)) if each not in points]
        # An undo point that was reverted to has ended with that.
        target = end.snapshot or name or points[-1]
        found = await service.snapshot(domain, target) if end.snapshot else None
        return Reverted(before, await service.domain(domain), target, "".join(kept[-1:]), end), found

    done, found = console.with_service(settings, work)
    values = {"domain": asdict(done.after), "snapshot": asdict(found) if found else None, "undo": done.undo}
    console.result(settings, _done(values, done.end), lambda: sentences.reverted(done))


@click.command()
@click.argument("domain")
@click.argument("snapshot")
@options.delete_options
@_yes
@click.pass_obj
def delete(settings: Settings, /, domain: str, snapshot: str, yes: bool, **given: Any) -> None:
    """Delete SNAPSHOT of DOMAIN. The guest and the other snapshots stay as they are."""
    scope = options.scope_of(given)
    chosen = options.as_delete(given)

    async def look(service: "Service") -> tuple[Snapshot, list[SnapshotRow]]:
        return await service.snapshot(domain, snapshot), await service.snapshot_rows(domain)

    target, rows = console.with_service(settings, look)
    names_below = below(rows, snapshot)
    gone = {"one": [snapshot], "tree": [snapshot, *names_below], "children": names_below}[scope]

    def explain(error: str, sentence: str) -> str:
        kept = [row.name for row in rows if row.name in gone and PROTECTED in row.flags and repr(row.name) in sentence]
        return sentences.protected(sentence, domain, kept[0]) if kept and error == f"{ERROR_PREFIX}Protected" else sentence

    if console.must_ask(yes):
        console.with_service(settings, lambda service: service.plan("delete", domain, snapshot, chosen), explain)
        console.ask(sentences.delete_question(domain, target, names_below, scope, console.now_usec()))

    async def work(service: "Service") -> JobEnd:
        with console.reporter(settings, domain) as shown:
            return await service.run_job("DeleteSnapshot", domain, snapshot, chosen, shown.show)

    end = console.with_service(settings, work, explain)
    console.result(settings, _done({"deleted": gone}, end), lambda: sentences.deleted(snapshot, names_below, scope, end))


@click.group()
def plan() -> None:
    """Say what a verb would do, and do nothing. Each step is a line."""


@plan.command(name="create")
@click.argument("domain")
@click.argument("name", required=False, default="")
@options.create_options
@click.pass_obj
def plan_create(settings: Settings, /, domain: str, name: str, **given: Any) -> None:
    """Say what 'create' would do."""
    _plan(settings, "create", domain, name, options.as_create(given))


@plan.command(name="revert")
@click.argument("domain")
@click.argument("snapshot", metavar="[NAME]", required=False)
@options.revert_options
@click.pass_obj
def plan_revert(settings: Settings, /, domain: str, snapshot: str | None, **given: Any) -> None:
    """Say what 'revert' would do."""
    name, chosen = options.as_revert(snapshot, given)
    _plan(settings, "revert", domain, name, chosen)


@plan.command(name="delete")
@click.argument("domain")
@click.argument("name")
@options.delete_options
@click.pass_obj
def plan_delete(settings: Settings, /, domain: str, name: str, **given: Any) -> None:
    """Say what 'delete' would do."""
    _plan(settings, "delete", domain, name, options.as_delete(given))


def _plan(settings: Settings, verb: str, domain: str, name: str, chosen: options.Options) -> None:
    steps = console.with_service(settings, lambda service: service.plan(verb, domain, name, chosen))
    console.result(settings, {"steps": steps}, lambda: render.plan(steps))


def _done(values: dict[str, Any], end: JobEnd) -> dict[str, Any]:
    return {"result": "done", **values, "duration_s": round(end.took_s, 3), "notes": list(end.notes)}
