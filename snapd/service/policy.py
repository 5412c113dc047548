# SPDX-License-Identifier: MIT
"""What the administrator has decided for all domains, where a request does not say otherwise."""

from dataclasses import dataclass

from snapd.model.plan import Live, Quiesce
from snapd.model.snapshot import SnapshotType


@dataclass(frozen=True)
class Policy:
    """``reserve_bytes`` is what a snapshot must leave free in each file system; ``chain_limit`` counts images of one disk."""

    reserve_bytes: int
    chain_limit: int
    live: Live
    type: SnapshotType = SnapshotType.ANY
    quiesce: Quiesce = Quiesce.AUTO
    undo: bool = True
