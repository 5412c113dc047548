# SPDX-License-Identifier: MIT
"""Owns the options of the verbs that change something, on the command line and as the service takes them.

Not here: what is done with them (``verbs``). A verb and the plan of it take the same ones.

- What is not said on the command line is not sent: then it is as the service is configured.
- Options that contradict each other are a usage error, and no order of them decides.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

OptionValue = bool | str | dict[str, str]
Options = dict[str, OptionValue]
"""The options of a verb, as the contract names them."""

Function = TypeVar("Function", bound=Callable[..., Any])

DISK_PARTS = ("internal", "external", "no")
_DISK_METAVAR = f"TARGET={'|'.join(DISK_PARTS)}"


def _disks(_context: click.Context, _parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    """Return the part of each disk, by target. Raises: click.BadParameter"""
    found: dict[str, str] = {}
    for value in values:
        target, _, part = value.rpartition("=")
        if not target or part not in DISK_PARTS:
            raise click.BadParameter(f"{value!r} is not {_DISK_METAVAR}.")
        if found.setdefault(target, part) != part:
            raise click.BadParameter(f"{target} cannot be both {found[target]} and {part}.")
    return found


def create_options(function: Function) -> Function:
    """Give a command what ``create`` takes besides a domain and a name."""
    for option in reversed(
        (
            click.option("--description", metavar="TEXT", default="", help="A text to keep with it."),
            click.option("--memory", is_flag=True, help="With memory, as it is by default where a guest is running or paused."),
            click.option("--disks-only", is_flag=True, help="Without memory."),
            click.option(
                "--type",
                "kind",
                type=click.Choice(["any", "internal", "external"]),
                help="How the disks are kept: inside the image (qcow2 only), or the image whole and covered by an overlay.",
            ),
            click.option(
                "--disk",
                "disks",
                metavar=_DISK_METAVAR,
                multiple=True,
                callback=_disks,
                help="How one disk is kept, or that it is left out; may be given for several.",
            ),
            click.option(
                "--quiesce",
                type=click.Choice(["auto", "require", "no"]),
                help="Whether the guest's agent freezes the file systems, without memory.",
            ),
            click.option(
                "--live",
                type=click.Choice(["auto", "require", "no"]),
                help="Whether the guest goes on while its memory is saved.",
            ),
        )
    ):
        function = option(function)
    return function


def as_create(given: Mapping[str, Any]) -> Options:
    """Return the options of CreateSnapshot. Raises: click.UsageError"""
    options: Options = {
        name: given[key]
        for name, key in (("description", "description"), ("type", "kind"), ("quiesce", "quiesce"), ("live", "live"))
        if given[key]
    }
    memory = _one_of({"--memory": given["memory"], "--disks-only": given["disks_only"]})
    if memory:
        options["memory"] = memory == "--memory"
    if given["disks"]:
        options["disks"] = given["disks"]
    return options


def revert_options(function: Function) -> Function:
    """Give a command what ``revert`` takes besides a domain and a snapshot."""
    for option in reversed(
        (
            click.option("--undo", is_flag=True, help="Undo the last revert: go back to the undo point that it kept."),
            click.option("--no-undo", is_flag=True, help="Keep no undo point; what is not in a snapshot is lost."),
            click.option("--undo-memory", is_flag=True, help="Keep the guest's memory in the undo point too."),
            click.option("--paused", is_flag=True, help="Leave the guest paused."),
            click.option("--running", is_flag=True, help="Let the guest run, even if it was paused."),
            click.option(
                "--force",
                is_flag=True,
                help="Without memory: although a disk was added or is missing since, or the domain was shut off then.",
            ),
        )
    ):
        function = option(function)
    return function


def as_revert(snapshot: str | None, given: Mapping[str, Any]) -> tuple[str, Options]:
    """Return the name to revert to, empty for the undo point, and the options of RevertSnapshot.

    Raises: click.UsageError
    """
    # An empty name, as a script's variable that is not set gives, must not come to mean the undo point.
    if snapshot == "":
        raise click.UsageError("SNAPSHOT is empty.")
    if (snapshot is None) != given["undo"]:
        raise click.UsageError("SNAPSHOT and --undo exclude each other." if snapshot else "Name a SNAPSHOT, or use --undo.")
    options: Options = {}
    undo = _one_of({"--no-undo": given["no_undo"], "--undo-memory": given["undo_memory"]})
    if undo:
        options["undo"] = undo == "--undo-memory"
    if undo == "--undo-memory":
        options["undo-memory"] = True
    state = _one_of({"--paused": given["paused"], "--running": given["running"]})
    if state:
        options["state"] = state.removeprefix("--")
    if given["force"]:
        options["force"] = True
    return snapshot or "", options


def delete_options(function: Function) -> Function:
    """Give a command what ``delete`` takes besides a domain and a snapshot."""
    for option in reversed(
        (
            click.option("--children", is_flag=True, help="Delete all snapshots below it as well."),
            click.option("--only-children", is_flag=True, help="Delete all snapshots below it and keep it."),
        )
    ):
        function = option(function)
    return function


def as_delete(given: Mapping[str, Any]) -> Options:
    """Return the options of DeleteSnapshot. Raises: click.UsageError"""
    scope = scope_of(given)
    return {} if scope == "one" else {"scope": scope}


def scope_of(given: Mapping[str, Any]) -> str:
    """Return what is deleted, as the contract says it: ``one``, ``tree`` or ``children``. Raises: click.UsageError"""
    chosen = _one_of({"--children": given["children"], "--only-children": given["only_children"]})
    return {"": "one", "--children": "tree", "--only-children": "children"}[chosen]


def _one_of(flags: Mapping[str, bool]) -> str:
    """Return the flag that is set, or the empty text. Raises: click.UsageError"""
    chosen = [flag for flag, is_set in flags.items() if is_set]
    if len(chosen) > 1:
        raise click.UsageError(f"{' and '.join(chosen)} exclude each other.")
    return chosen[0] if chosen else ""
