# SPDX-License-Identifier: MIT
"""Every error the service can answer with.

    SnapdError
    ├── Refused                  nothing was touched
    │   ├── NoSuchDomain, NoSuchSnapshot, NoSuchJob, SnapshotExists
    │   ├── InvalidName, InvalidOption
    │   ├── DomainBusy, DomainUnreachable, DomainDrifted, Interrupted
    │   ├── NotSupported, Protected, ImageInUse, NoSpace, AccessDenied
    │   └── LimitReached
    └── Failed                   something was begun; the sentence says what is left
        ├── QuiesceFailed, MonitorLost, QemuFailed, ImageToolFailed
        ├── StateDamaged, UndoFailed, Canceled
        └── Internal

Each class has a stable ``code``, typed attributes, and makes its own sentence. ``bus.errors`` maps each code to a D-Bus
name. The sentence says what was refused, which domain, disk or device, why, and what to do. This module imports nothing.
"""


class SnapdError(Exception):
    """The root: an error that is meant for a person; ``str()`` of it is the sentence."""

    code: str = "Internal"

    @property
    def sentence(self) -> str:
        return str(self)


class Refused(SnapdError):
    """The request cannot be carried out; guest, images and state are as they were."""


class Failed(SnapdError):
    """The operation was begun and did not succeed; what it had done has been undone unless the sentence says otherwise."""


class NoSuchDomain(Refused):
    code = "NoSuchDomain"

    def __init__(self, domain: str) -> None:
        self.domain = domain
        super().__init__(f"There is no domain {domain!r}; 'domsnap domains' lists the ones that are defined.")


class NoSuchSnapshot(Refused):
    code = "NoSuchSnapshot"

    def __init__(self, domain: str, snapshot: str) -> None:
        self.domain, self.snapshot = domain, snapshot
        super().__init__(f"Domain {domain} has no snapshot {snapshot!r}; 'domsnap list {domain}' lists the ones it has.")


class NoSuchJob(Refused):
    code = "NoSuchJob"

    def __init__(self, job: str) -> None:
        self.job = job
        super().__init__(f"There is no job {job}; a finished job is forgotten after a minute.")


class SnapshotExists(Refused):
    code = "SnapshotExists"

    def __init__(self, domain: str, snapshot: str) -> None:
        self.domain, self.snapshot = domain, snapshot
        super().__init__(f"Domain {domain} already has a snapshot {snapshot!r}; choose another name or delete that one first.")


class InvalidName(Refused):
    code = "InvalidName"

    def __init__(self, what: str, name: str, reason: str) -> None:
        self.what, self.name, self.reason = what, name, reason
        shown = name if len(name) <= 60 else name[:57] + "..."
        super().__init__(f"{shown!r} cannot be the name of a {what}: {reason}.")


class InvalidOption(Refused):
    code = "InvalidOption"

    def __init__(self, option: str, reason: str) -> None:
        self.option, self.reason = option, reason
        super().__init__(f"Option {option!r} {reason}.")


class DomainBusy(Refused):
    code = "DomainBusy"

    def __init__(self, domain: str, doing: str) -> None:
        self.domain, self.doing = domain, doing
        super().__init__(f"Domain {domain} is busy with {doing}; try again when that has ended.")


class DomainUnreachable(Refused):
    code = "DomainUnreachable"

    def __init__(self, domain: str, reason: str) -> None:
        self.domain, self.reason = domain, reason
        super().__init__(f"Domain {domain} cannot be reached: {reason}.")


class DomainDrifted(Refused):
    code = "DomainDrifted"

    def __init__(self, domain: str, reason: str) -> None:
        self.domain, self.reason = domain, reason
        super().__init__(
            f"Domain {domain} does not run on the images that its snapshots expect, so nothing is changed: {reason}."
        )


class Interrupted(Refused):
    """An intent of an operation that did not end stands in the way of the next one."""

    code = "Interrupted"

    def __init__(self, domain: str, operation: str, intent: str) -> None:
        self.domain, self.operation, self.intent = domain, operation, intent
        super().__init__(
            f"Domain {domain} was left in the middle of {operation}, so nothing is changed until that is settled; "
            f"what was planned and how far it came stands in {intent}."
        )


class NotSupported(Refused):
    code = "NotSupported"

    def __init__(self, domain: str, what: str, reason: str) -> None:
        self.domain, self.what, self.reason = domain, what, reason
        super().__init__(f"{what} is not possible for domain {domain}: {reason}.")


class Protected(Refused):
    code = "Protected"

    def __init__(self, snapshot: str) -> None:
        self.snapshot = snapshot
        super().__init__(f"Snapshot {snapshot!r} is protected; take the protection off first.")


class ImageInUse(Refused):
    code = "ImageInUse"

    def __init__(self, path: str, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} {reason}.")


class NoSpace(Refused):
    code = "NoSpace"

    def __init__(self, directory: str, needed_bytes: int, free_bytes: int) -> None:
        self.directory, self.needed_bytes, self.free_bytes = directory, needed_bytes, free_bytes
        super().__init__(
            f"{directory} has {_size(free_bytes)} free and {_size(needed_bytes)} are needed; "
            "free some space or configure another directory."
        )


class AccessDenied(Refused):
    code = "AccessDenied"

    def __init__(self, action: str, domain: str | None = None) -> None:
        self.action, self.domain = action, domain
        where = f" domain {domain}" if domain else ""
        super().__init__(f"You may not {action}{where}; ask an administrator.")


class LimitReached(Refused):
    code = "LimitReached"

    def __init__(self, what: str, limit: int) -> None:
        self.what, self.limit = what, limit
        super().__init__(f"No more than {limit} {what}; try again when some have ended.")


class QuiesceFailed(Failed):
    """File systems were not frozen; or not thawed, and ``may_be_frozen`` is true."""

    code = "QuiesceFailed"

    def __init__(self, domain: str, reason: str, *, may_be_frozen: bool = False) -> None:
        self.domain, self.reason, self.may_be_frozen = domain, reason, may_be_frozen
        done = "thawed for certain" if may_be_frozen else "frozen"
        super().__init__(f"The file systems of domain {domain} could not be {done}: {reason}.")


class MonitorLost(Failed):
    """The connection ended before an answer came: whether QEMU did what was asked is not known."""

    code = "MonitorLost"

    def __init__(self, domain: str, during: str, reason: str) -> None:
        self.domain, self.during, self.reason = domain, during, reason
        super().__init__(f"The monitor of domain {domain} was lost during {during}, whose outcome is unknown: {reason}.")


class QemuFailed(Failed):
    """QEMU answered a command with an error, or a job of its ended with one."""

    code = "QemuFailed"

    def __init__(self, domain: str, command: str, text: str) -> None:
        self.domain, self.command, self.text = domain, command, text
        super().__init__(f"QEMU of domain {domain} refused {command}: {text.rstrip('.')}.")


class ImageToolFailed(Failed):
    code = "ImageToolFailed"

    def __init__(self, command: str, text: str) -> None:
        self.command, self.text = command, text
        super().__init__(f"{command} failed: {text.rstrip('.')}.")


class StateDamaged(Failed):
    """A file of ours cannot be read or written; ``line`` is 0 where none applies."""

    code = "StateDamaged"

    def __init__(self, path: str, line: int, reason: str) -> None:
        self.path, self.line, self.reason = path, line, reason
        where = f"{path}:{line}" if line else path
        super().__init__(f"{where}: {reason}.")


class UndoFailed(Failed):
    """A step failed, and so did undoing what came before it."""

    code = "UndoFailed"

    def __init__(self, domain: str, cause: str, undone: list[str], left: list[str]) -> None:
        self.domain, self.cause, self.undone, self.left = domain, cause, undone, left
        super().__init__(
            f"{cause} Undoing it failed too on domain {domain}: undone: {', '.join(undone) or 'nothing'}; "
            f"left as it is: {', '.join(left)}."
        )


class Canceled(Failed):
    code = "Canceled"

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(f"{what} was canceled; everything is as before.")


class Internal(Failed):
    """A fault of the service itself; the traceback is in its log under ``reference``."""

    code = "Internal"

    def __init__(self, reference: str) -> None:
        self.reference = reference
        super().__init__(f"The service met a fault of its own; its log says more under {reference}.")


def _size(size_bytes: int) -> str:
    """Return a size in the unit in which it is no fraction below one."""
    return f"{size_bytes / 2**20:.0f} MiB" if size_bytes >= 1 << 20 else f"{size_bytes / 2**10:.0f} KiB"


def concrete_errors() -> list[type[SnapdError]]:
    """Return every class that has a code of its own, for the tables that must be complete."""
    found: list[type[SnapdError]] = []
    waiting: list[type[SnapdError]] = [Refused, Failed]
    while waiting:
        for each in waiting.pop().__subclasses__():
            found.append(each)
            waiting.append(each)
    return sorted(found, key=lambda each: each.code)
