# SPDX-License-Identifier: MIT
"""The files of the state over generated values, generated histories and generated damage."""

import contextlib
import subprocess
from dataclasses import replace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from snapd.errors import StateDamaged
from snapd.model.domain import DomainState, Machine
from snapd.model.images import Image, ImageGraph, Origin, Pin
from snapd.model.record import DomainRecord, PendingRevert
from snapd.model.snapshot import MemoryState, RevertState, SaveMethod, Snapshot, SnapshotDisk, SnapshotType
from snapd.model.tree import SnapshotTree
from snapd.state.active import environment
from snapd.state.domain_document import document_of, read_domain, write_domain
from snapd.state.extension import DomainExtension, SnapshotExtension
from snapd.state.libxl_json import dumps, loads
from snapd.state.snapshot_document import SnapshotDocument, read_snapshot, write_snapshot

SHELL_TIMEOUT_S = 30
TARGETS = ("vda", "vdb", "disk ö")

c_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
paths = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).map("/{}".format)
counts = st.integers(0, 2**63 - 1)
formats = st.sampled_from(["raw", "qcow2", "qcow", "vhd", "qed", "vmdk", "unknown", "empty", ""])
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | c_text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(c_text, inner, max_size=3),
    max_leaves=6,
)
unknown_keys = st.dictionaries(c_text.map("x-{}".format), json_values, max_size=2)
pins = st.dictionaries(c_text, st.builds(Pin, paths, c_text), max_size=3)


def possible(snapshot: Snapshot) -> Snapshot:
    """Return ``snapshot`` without its memory if it is of a domain that was shut off."""
    return replace(snapshot, memory=None) if snapshot.state is DomainState.SHUTOFF else snapshot


snapshots = st.builds(
    Snapshot,
    name=c_text,
    created_usec=st.integers(0, (2**64 - 1) * 10**6),
    type=st.sampled_from(SnapshotType),
    state=st.sampled_from([DomainState.RUNNING, DomainState.PAUSED, DomainState.SHUTOFF]),
    disks=st.lists(
        st.builds(SnapshotDisk, c_text, st.just("") | c_text, formats, counts), max_size=3, unique_by=lambda disk: disk.target
    ).map(tuple),
    machine=st.none() | st.builds(Machine, c_text, counts, counts, st.lists(c_text, max_size=3).map(tuple)),
    memory=st.none() | st.builds(MemoryState, paths, counts, st.sampled_from(SaveMethod), c_text),
    description=c_text,
    pause_usec=counts,
    consistency=c_text,
    parent=c_text,
    left_out=st.dictionaries(c_text, c_text, max_size=2),
    undo=st.booleans(),
    protected=st.booleans(),
    foreign=unknown_keys,
).map(possible)


@st.composite
def records(draw: st.DrawFn) -> DomainRecord:
    """Draw a domain as a history of creating, reverting and deleting leaves it."""
    targets = draw(st.lists(st.sampled_from(TARGETS), min_size=1, unique=True))
    graph = ImageGraph(
        {f"/{target}": Image(f"/{target}", draw(formats), None, Origin.DEFINED, draw(counts)) for target in targets},
        {target: f"/{target}" for target in targets},
    )
    tree = SnapshotTree()
    for number in range(draw(st.integers(0, 6))):
        if len(tree) and draw(st.booleans()):
            tree = tree.revert_to(draw(st.sampled_from(sorted(tree.snapshots))))
        name = f"{draw(c_text)}-{number}"
        pinned = {}
        for target, path in graph.active.items():
            if draw(st.booleans()):
                pinned[target] = Pin(path, name)
            else:
                pinned[target] = Pin(path)
                graph = graph.cover(target, Image(f"{path}.{number}", "qcow2", path, Origin.CREATED, draw(counts)))
        graph = graph.pin(name, pinned)
        tree = tree.add(replace(draw(snapshots), name=name))
    if len(tree) and draw(st.booleans()):
        gone = draw(st.sampled_from(sorted(tree.snapshots)))
        tree, graph = tree.remove([gone]), graph.unpin(gone)
    pending = None
    if len(tree) and draw(st.booleans()):
        pending = PendingRevert(draw(st.sampled_from(sorted(tree.snapshots))), draw(st.sampled_from(RevertState)))
    return DomainRecord(draw(c_text), draw(c_text), graph, tree, pending, draw(st.booleans()))


@given(snapshots, pins)
def test_any_snapshot_comes_back(snapshot: Snapshot, pinned: dict[str, Pin]) -> None:
    document = SnapshotDocument(snapshot, pinned)
    data = write_snapshot(document, "f")
    assert read_snapshot(data, "f") == document
    assert write_snapshot(read_snapshot(data, "f"), "f") == data


@settings(deadline=None)
@given(records(), unknown_keys, unknown_keys)
def test_any_domain_comes_back(record: DomainRecord, ours: dict[str, Any], others: dict[str, Any]) -> None:
    foreign = {**others, "domsnap": {**ours, "version": 1}}
    revised = {name: "text" for name in record.tree.snapshots if len(name) % 2}
    document = document_of(record, revised, foreign)
    data = write_domain(document, "f")
    read = read_domain(data, "f")
    assert replace(read, foreign=foreign) == document
    assert write_domain(read, "f") == data
    value = loads(data, "f")
    assert {key: value[key] for key in others} == others


@settings(deadline=None)
@given(st.data(), records())
def test_a_damaged_text_is_read_or_refused_and_never_more(data: st.DataObject, record: DomainRecord) -> None:
    texts = [write_domain(document_of(record, {}, {}), "f")]
    texts += [write_snapshot(SnapshotDocument(each), "f") for each in record.tree.snapshots.values()]
    text = bytearray(data.draw(st.sampled_from(texts)))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        text[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3) | st.sampled_from([b"{", b"[]", b"-1"]))
        if not text:
            break
    for read in (read_domain, read_snapshot):
        with contextlib.suppress(StateDamaged):
            read(bytes(text), "f")


OUR_KEYS = sorted({*SnapshotExtension.__struct_fields__, *DomainExtension.__struct_fields__})


@given(st.dictionaries(st.sampled_from(OUR_KEYS), json_values))
def test_any_value_under_our_key_is_read_or_refused(ours: dict[str, Any]) -> None:
    text = dumps({"domsnap": {"version": 1, **ours}})
    for read in (read_domain, read_snapshot):
        with contextlib.suppress(StateDamaged):
            read(text, "f")


def shell_words() -> st.SearchStrategy[str]:
    plain = st.characters(exclude_categories=["Cs", "Cc"])
    return st.text(st.sampled_from("\"'\\`$ \t#;,=%{}()é*~!").filter(lambda char: char != "\t") | plain, min_size=1)


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abcdefgh"), st.tuples(shell_words(), st.sampled_from(["raw", "qcow2"])), min_size=1))
def test_a_shell_reads_the_environment_file_as_it_was_meant(active: dict[str, tuple[str, str]]) -> None:
    # What systemd reads in double quotes is what a shell reads there, so a shell stands in for it.
    names = [f"DOMSNAP_{target.upper()}_{what}" for target in active for what in ("FILE", "FORMAT")]
    script = environment(active) + "".join(f"printf '%s\\0' \"${name}\"\n" for name in names)
    done = subprocess.run(["sh"], input=script.encode(), capture_output=True, timeout=SHELL_TIMEOUT_S, check=True)
    assert done.stderr == b""
    assert done.stdout.decode().split("\0")[:-1] == [text for pair in active.values() for text in pair]
