# SPDX-License-Identifier: MIT
"""The face ``org.domsnap1.Snapshot``: one snapshot."""

from collections.abc import Mapping
from typing import Any

from snapd.bus.faces import Caller, Method
from snapd.bus.marshal import snapshot_disk_rows, snapshot_or_none, type_shown
from snapd.bus.names import SNAPSHOT_INTERFACE, domain_path, snapshot_path
from snapd.bus.verbs import Given, Verbs
from snapd.model.planner import find_snapshot
from snapd.service.managed_domain import ManagedDomain


class SnapshotFace:
    interface = SNAPSHOT_INTERFACE

    def __init__(self, domain: ManagedDomain, name: str, verbs: Verbs) -> None:
        self._domain, self._name, self._verbs = domain, name, verbs

    def methods(self) -> Mapping[str, Method]:
        return {"Revert": self.revert, "Delete": self.delete, "SetProtected": self.set_protected}

    def properties(self) -> Mapping[str, Any]:
        domain, tree = self._domain, self._domain.record.tree
        snapshot = find_snapshot(domain.record, self._name)
        memory = snapshot.memory
        return {
            "Name": snapshot.name,
            "Domain": domain_path(domain.name),
            "Description": snapshot.description,
            "CreationUSec": snapshot.created_usec,
            "Type": type_shown(snapshot),
            "Memory": memory is not None,
            "MemoryBytes": memory.size_bytes if memory else 0,
            "PauseUSec": snapshot.pause_usec,
            "Method": memory.method.value if memory else "",
            "MethodReason": memory.method_reason if memory else "",
            "Consistency": snapshot.consistency,
            "DomainState": snapshot.state.value,
            "Parent": snapshot_or_none(domain, snapshot.parent),
            "Children": [snapshot_path(domain.name, each.name) for each in tree.children(snapshot.name)],
            "Protected": snapshot.protected,
            "Undo": snapshot.undo,
            "Current": tree.current == snapshot.name,
            "Disks": snapshot_disk_rows(domain.record, snapshot),
            "LeftOut": dict(snapshot.left_out),
            "Bytes": memory.size_bytes if memory else 0,
        }

    async def revert(self, caller: Caller, given: Given) -> tuple[str]:
        return await self._verbs.revert(caller, self._domain, self._name, given)

    async def delete(self, caller: Caller, given: Given) -> tuple[str]:
        return await self._verbs.delete(caller, self._domain, self._name, given)

    async def set_protected(self, caller: Caller, protected: bool) -> tuple[()]:
        return await self._verbs.set_protected(caller, self._domain, self._name, protected)
