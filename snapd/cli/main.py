# SPDX-License-Identifier: MIT
"""Owns the command line of ``domsnap``: its global options, the verbs that look, and the short ones that change.

Not here: the long verbs (``verbs``) and how any of them runs (``console``). It neither speaks D-Bus nor words results.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from snapd.cli import console, render, sentences, verbs
from snapd.cli.console import Settings
from snapd.cli.values import Domain, Snapshot

if TYPE_CHECKING:
    from snapd.cli.client import Service


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


for _verb in (verbs.create, verbs.revert, verbs.delete, verbs.plan):
    main.add_command(_verb)


@main.command()
@click.pass_obj
def domains(settings: Settings) -> None:
    """List the domains."""
    rows = console.with_service(settings, lambda service: service.domains())
    console.result(settings, {"domains": [asdict(each) for each in rows]}, lambda: render.domain_table(rows))


@main.command(name="list")
@click.argument("domain")
@click.pass_obj
def list_(settings: Settings, domain: str) -> None:
    """Show the snapshots of DOMAIN as a tree."""

    async def fetch(service: "Service") -> tuple[Domain, list[Snapshot]]:
        return await service.domain(domain), await service.snapshots(domain)

    about, snapshots = console.with_service(settings, fetch)
    values = {"domain": asdict(about), "snapshots": [asdict(each) for each in snapshots]}
    console.result(settings, values, lambda: render.snapshot_tree(about, snapshots, console.now_usec()))


@main.command()
@click.argument("domain")
@click.argument("snapshot", required=False)
@click.pass_obj
def show(settings: Settings, domain: str, snapshot: str | None) -> None:
    """Show everything about SNAPSHOT, or about DOMAIN."""
    if snapshot is None:
        about = console.with_service(settings, lambda service: service.domain(domain))
        console.result(settings, {"domain": asdict(about)}, lambda: render.domain_details(about))
    else:
        one = console.with_service(settings, lambda service: service.snapshot(domain, snapshot))
        values = {"snapshot": asdict(one)}
        console.result(settings, values, lambda: render.snapshot_details(one, console.now_usec()))


@main.command()
@click.argument("domain")
@click.argument("snapshot")
@click.option("--off", is_flag=True, help="Take the protection off.")
@click.pass_obj
def protect(settings: Settings, domain: str, snapshot: str, off: bool) -> None:
    """Protect SNAPSHOT of DOMAIN from being deleted.

    An undo point that is protected does not end with the next revert.
    """

    async def work(service: "Service") -> Snapshot:
        await service.set_protected(domain, snapshot, not off)
        return await service.snapshot(domain, snapshot)

    one = console.with_service(settings, work)
    values = {"result": "done", "snapshot": asdict(one)}
    console.result(settings, values, lambda: sentences.protection(domain, snapshot, is_on=not off))


@main.command(name="cancel-revert")
@click.argument("domain")
@click.pass_obj
def cancel_revert(settings: Settings, domain: str) -> None:
    """Give up the memory that waits for DOMAIN to run.

    It stands in a snapshot that DOMAIN was taken back to while it was shut off. The disks stay as they are.
    """

    async def work(service: "Service") -> tuple[Domain, Domain]:
        before = await service.domain(domain)
        await service.cancel_pending_revert(domain)
        return before, await service.domain(domain)

    before, after = console.with_service(settings, work)
    console.result(settings, {"result": "done", "domain": asdict(after)}, lambda: sentences.pending_canceled(before))


if __name__ == "__main__":
    main()
