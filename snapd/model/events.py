# SPDX-License-Identifier: MIT
"""What happened, as values: the facts that the service announces once they are durable."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DomainAdded:
    domain: str


@dataclass(frozen=True)
class DomainRemoved:
    domain: str


@dataclass(frozen=True)
class DomainChanged:
    """Something that the domain shows as a property is different now."""

    domain: str


@dataclass(frozen=True)
class SnapshotCreated:
    domain: str
    snapshot: str


@dataclass(frozen=True)
class SnapshotReverted:
    domain: str
    snapshot: str


@dataclass(frozen=True)
class SnapshotDeleted:
    domain: str
    snapshot: str


@dataclass(frozen=True)
class SnapshotChanged:
    domain: str
    snapshot: str


@dataclass(frozen=True)
class JobAdded:
    job: int


@dataclass(frozen=True)
class JobChanged:
    job: int


@dataclass(frozen=True)
class JobEnded:
    """The job has its result; its object stays for a while."""

    job: int


@dataclass(frozen=True)
class JobRemoved:
    job: int


Event = (
    DomainAdded
    | DomainRemoved
    | DomainChanged
    | SnapshotCreated
    | SnapshotReverted
    | SnapshotDeleted
    | SnapshotChanged
    | JobAdded
    | JobChanged
    | JobEnded
    | JobRemoved
)
