# SPDX-License-Identifier: MIT
"""The committed state and the intent of one domain, changed durably and one step at a time.

Not here: how the directory is read (``directory``), what the files say (``*_document``), and when to commit (``engine``).

- ``domain.libxl-json`` is the commit: before it is in place everything is as it was, after it everything is new. What other
  files still say of it then is put right afterwards, or by the next commit.
- ``committed`` and ``intent`` say what is durable at every instant, also after a failure and while a cancelled call still runs.
- A commit either raises and has changed nothing, or it returns: what goes wrong after the commit point is no failure of it.
- A file that something else has changed since it was read is not overwritten.
"""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from snapd.errors import Interrupted, NotSupported, SnapdError, StateDamaged
from snapd.model.plan import Plan
from snapd.model.record import DomainRecord
from snapd.model.snapshot import Snapshot
from snapd.state.active import LINKS, refresh
from snapd.state.atomic import remove_durably, write_atomically
from snapd.state.directory import DOMAIN_FILE, Found, find, identity_of, placeholder, prototype_path, snapshot_path
from snapd.state.domain_document import document_of, write_domain
from snapd.state.intent import INTENT_FILE, Intent, IntentRecord, read_intent, write_intent
from snapd.state.snapshot_document import SnapshotDocument, write_snapshot

log = logging.getLogger(__name__)


class Store:
    """One domain's directory; ``open`` makes it out of what is there. Every change runs in a thread, one at a time."""

    def __init__(self, directory: Path, found: Found, record: IntentRecord | None, intent: Intent | None) -> None:
        self._directory = directory
        self._committed = found.record
        self._damaged = dict(found.damaged)
        self._written = dict(found.written)
        self._prototypes = set(found.prototypes)
        self._foreign = found.document.foreign
        self._identity = found.identity
        self._unrevised = bool(found.document.revised)
        self._record, self._intent = record, intent
        # A call whose waiting was cancelled runs on, and what comes next must not overtake it.
        self._one_at_a_time = threading.Lock()

    @classmethod
    async def open(cls, directory: Path, name: str, uuid: str) -> "Store":
        """Open the state of the domain ``name`` in ``directory``, which is its own and is made where it is missing.

        Effects: snapshot files that cannot be read are set aside; ``disks.env`` and the links are brought up to date.
        Raises: StateDamaged when the domain's own file cannot be read, or is another domain's; nothing has been moved.
        """
        return await asyncio.to_thread(cls._open, directory, name, uuid)

    @classmethod
    def _open(cls, directory: Path, name: str, uuid: str) -> "Store":
        store = cls(directory, find(directory, name, uuid), *read_intent(directory / INTENT_FILE))
        store._refresh()
        return store

    # What is durable

    @property
    def committed(self) -> DomainRecord:
        return self._committed

    @property
    def intent(self) -> Intent | None:
        """The operation that was begun and has not ended, in this process or before it."""
        return self._intent

    @property
    def interrupted(self) -> tuple[str, str] | None:
        """What the intent is for, in words, and its path."""
        return (self._intent.title, self._intent.path) if self._intent else None

    @property
    def begun(self) -> tuple[str, ...]:
        """The steps of the intent that were begun."""
        return self._intent.begun if self._intent else ()

    @property
    def damaged(self) -> Mapping[str, str]:
        """Why a snapshot's own file could not be read, by name; what the snapshot pins is kept all the same."""
        return dict(self._damaged)

    @property
    def links_directory(self) -> str:
        """The absolute path of the directory with the links to the active images, which need not be there yet."""
        return str((self._directory / LINKS).absolute())

    # Changing it

    async def begin(self, operation: str, subject: str, plan: Plan) -> None:
        """Make the intent durable.

        Raises: Interrupted when there is one; NotSupported when the plan cannot be written down; NoSpace, StateDamaged. There
        is no intent then.
        """
        await asyncio.to_thread(self._begin, operation, subject, plan)

    async def step(self, name: str) -> None:
        """Make durable that a step of the intent begins. Raises: NoSpace, StateDamaged; the step has not begun."""
        await asyncio.to_thread(self._step, name)

    async def commit(self, after: DomainRecord) -> None:
        """Make ``after`` the committed state.

        Effects: files of new snapshots, then the domain's own file, which is the commit; then files of snapshots that are
        gone are removed, and ``disks.env`` and the links follow.
        Raises: NoSpace, StateDamaged; the state is as before, unless the sentence says that it was changed: then no further
        change is accepted until the service has read it again.
        """
        await asyncio.to_thread(self._commit, after)

    async def end(self) -> None:
        """Remove the intent; none is as good. Raises: NoSpace, StateDamaged."""
        await asyncio.to_thread(self._end)

    @property
    def _intent_path(self) -> Path:
        return self._directory / INTENT_FILE

    @property
    def _domain_path(self) -> Path:
        return self._directory / DOMAIN_FILE

    def _begin(self, operation: str, subject: str, plan: Plan) -> None:
        with self._one_at_a_time:
            intent = self._intent or read_intent(self._intent_path)[1]
            if intent:
                raise Interrupted(self._committed.name, intent.title, intent.path)
            self._refuse_foreign_change()
            try:
                record = IntentRecord.new(operation, subject, plan)
                text = record.text()
            except (ValueError, TypeError) as cause:
                raise NotSupported(
                    self._committed.name, f"To {operation} {subject!r}", f"its plan cannot be written down ({cause})"
                ) from cause
            try:
                write_intent(self._intent_path, text)
            except SnapdError:
                with contextlib.suppress(SnapdError):
                    remove_durably(self._intent_path)
                raise
            self._record, self._intent = record, record.shown(self._intent_path)

    def _step(self, name: str) -> None:
        with self._one_at_a_time:
            if self._record is None:
                raise StateDamaged(str(self._intent_path), 0, f"it has no plan that the step {name!r} could belong to")
            record = self._record.with_step(name)
            try:
                text = record.text()
            except (ValueError, TypeError) as cause:
                raise StateDamaged(str(self._intent_path), 0, f"the step {name!r} cannot be written down: {cause}") from cause
            write_intent(self._intent_path, text)
            self._record, self._intent = record, record.shown(self._intent_path)

    def _end(self) -> None:
        with self._one_at_a_time:
            remove_durably(self._intent_path)
            self._record = self._intent = None

    def _commit(self, after: DomainRecord) -> None:
        with self._one_at_a_time:
            self._refuse_foreign_change()
            documents = {
                name: SnapshotDocument(each, after.graph.pins.get(name, {}))
                for name, each in after.tree.snapshots.items()
                if not self._stays_damaged(each)
            }
            stale = {name: each for name, each in documents.items() if self._written.get(name) != each}
            texts = {name: write_snapshot(each, str(self._snapshot_path(name))) for name, each in stale.items()}
            # A new file counts from the commit on. What a file already says is replaced only after it, so the commit itself
            # has to hold what is to be said; parents and pins it holds anyway.
            new = [name for name in stale if name not in self._written]
            revised = {
                name: texts[name].decode()
                for name, each in stale.items()
                if name in self._written and each.own != self._written[name].own
            }
            data = write_domain(document_of(after, revised, self._foreign), str(self._domain_path))
            settled = write_domain(document_of(after, {}, self._foreign), str(self._domain_path)) if revised else data
            before = self._committed
            self._write_new(new, documents, texts)
            self._write_domain(data, new)
            self._committed, self._unrevised = after, bool(revised)
            self._damaged = {name: why for name, why in self._damaged.items() if name in after.tree and name not in documents}
            self._follow(documents, {name: texts[name] for name in stale if name not in new}, settled)
            self._forget(before, after)
            self._refresh()

    def _snapshot_path(self, name: str) -> Path:
        try:
            return snapshot_path(self._directory, name)
        except UnicodeEncodeError as cause:
            raise StateDamaged(
                str(self._directory), 0, f"snapshot {name!r} cannot have a file: its name is not UTF-8"
            ) from cause

    def _refuse_foreign_change(self) -> None:
        if identity_of(self._domain_path) != self._identity:
            raise StateDamaged(
                str(self._domain_path),
                0,
                "something else has changed it since it was read, and it is left as it is; "
                "see that no two domains have one uuid, and restart the service to read it again",
            )

    def _stays_damaged(self, snapshot: Snapshot) -> bool:
        """Whether ``snapshot`` is what stands in for a lost file, which must not become a file that says so little."""
        return snapshot.name in self._damaged and snapshot == placeholder(snapshot.name, snapshot.parent)

    def _write_new(self, new: Sequence[str], documents: Mapping[str, SnapshotDocument], texts: Mapping[str, bytes]) -> None:
        # A snapshot of the prototype moves to its own name first: a new one may be about to take the old name.
        ordered = sorted(new, key=lambda name: name not in self._committed.tree)
        try:
            for name in ordered:
                # Each is durable before the domain's own file refers to it; one sync of the directory, the last, does for all.
                write_atomically(self._snapshot_path(name), texts[name], sync_directory=name == ordered[-1])
                if name in self._committed.tree:
                    self._written[name] = documents[name]
        except SnapdError:
            self._drop_new(new)
            raise
        for name in ordered:
            self._written[name] = documents[name]

    def _write_domain(self, data: bytes, new: Sequence[str]) -> None:
        try:
            write_atomically(self._domain_path, data)
            self._identity = identity_of(self._domain_path)
        except SnapdError:
            self._drop_new(new)
            raise

    def _drop_new(self, new: Sequence[str]) -> None:
        """Remove the files of snapshots that are not to be, unless the domain's own file may list them already."""
        # The error that led here is the one to report, and a file that is not listed is nothing.
        with contextlib.suppress(SnapdError, OSError):
            if identity_of(self._domain_path) != self._identity:
                return
            for name in new:
                if name not in self._committed.tree:
                    self._written.pop(name, None)
                    self._snapshot_path(name).unlink(missing_ok=True)

    # After the commit: what fails here is tried again by the next commit

    def _follow(self, documents: Mapping[str, SnapshotDocument], texts: Mapping[str, bytes], settled: bytes) -> None:
        """Let the files of snapshots that were there say what the commit says, and the commit then no longer say it."""
        try:
            for number, (name, text) in enumerate(texts.items(), 1):
                # A power cut may bring the old texts back until the last one is synced, which must be before the commit
                # no longer says the new ones.
                write_atomically(self._snapshot_path(name), text, sync_directory=self._unrevised and number == len(texts))
                self._written[name] = documents[name]
            if self._unrevised:
                write_atomically(self._domain_path, settled, sync_directory=False)
                self._identity, self._unrevised = identity_of(self._domain_path), False
        except SnapdError as error:
            log.warning("domain %s is committed; a file that repeats it is not up to date: %s", self._committed.name, error)

    def _forget(self, before: DomainRecord, after: DomainRecord) -> None:
        """Remove the files of snapshots that are gone, and those of the prototype that were written anew.

        One that stays, or that a power cut brings back, is not listed and so is nothing.
        """
        kept = {self._snapshot_path(name) for name in after.tree.snapshots}
        gone = {self._snapshot_path(name) for name in before.tree.snapshots if name not in after.tree}
        moved = {name for name in self._prototypes if name in self._written or name not in after.tree}
        gone |= {prototype_path(self._directory, name) for name in moved}
        for path in gone - kept:
            try:
                path.unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s of a snapshot that is gone stays: %s", path, error.strerror)
        self._prototypes -= moved
        self._written = {name: each for name, each in self._written.items() if name in after.tree}

    def _refresh(self) -> None:
        try:
            refresh(self._directory, self._committed.graph)
        except SnapdError as error:
            log.error(  # noqa: TRY400  what failed is the file system
                "domain %s must not be started before this is mended, its active images are not where units look: %s",
                self._committed.name,
                error,
            )
