# SPDX-License-Identifier: MIT
"""What an object on the bus is made of: faces, one for each interface of ours that it has.

Not here: which objects there are (``objects``), and how a call finds its face (``dispatch``). A face has no state: it shows a
thing of the service, and turns calls into requests.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from snapd.bus.contract import Interface
from snapd.bus.wire import Variant


@dataclass(frozen=True)
class Caller:
    """Who calls: the unique name on the bus, and the user it belongs to."""

    name: str
    uid: int


Method = Callable[..., Awaitable[tuple[Any, ...]]]
"""Takes the caller and the arguments, returns the results."""


class Face(Protocol):
    """One interface of one object."""

    @property
    def interface(self) -> str: ...

    def methods(self) -> Mapping[str, Method]:
        """Return a handler for each method of the contract."""

    def properties(self) -> Mapping[str, Any]:
        """Return the present value of each property of the contract; those in an ``a{sv}`` are variants already."""


def shown(interface: Interface, face: Face) -> dict[str, Variant]:
    """Return the properties of ``face`` as the bus wants them."""
    values = face.properties()
    return {name: Variant(each.type, values[name]) for name, each in interface.properties.items()}
