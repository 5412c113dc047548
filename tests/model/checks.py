# SPDX-License-Identifier: MIT
"""The comparison of a domain with the model: every block of every snapshot, every file, every image, and what QEMU has.

Not here: what is compared with (``expected``), and how it came about (``world``). Nothing is changed by looking, but that QEMU
writes to its files what it keeps of them in memory.
"""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from snapd.model.images import Origin
from snapd.model.names import escape_for_file
from tests.lab.blocks import BlockReader
from tests.model.expected import PAUSED, RUNNING, SHUTOFF, Expected, different_units, parents
from tests.model.rig import Rig
from tests.model.steps import Create

TOOL_TIMEOUT_S = 60.0


def check_all(rig: Rig, expected: Expected, names: Mapping[str, str]) -> None:
    """Compare everything but what takes a program for each image.

    Args:
        names: what the service calls each snapshot, by its name in the walk.

    Raises: AssertionError with what differs.
    """
    assert not [line for line in rig.complaints.lines if line.startswith(("ERROR", "CRITICAL"))], rig.complaints.lines
    rig.flush()
    reader = BlockReader()
    _check_tree(rig, expected, names)
    _check_contents(rig, expected, names, reader)
    _check_images(rig, reader)
    _check_files(rig)
    if rig.qemu:
        _check_qemu(rig, expected)


def _check_tree(rig: Rig, expected: Expected, names: Mapping[str, str]) -> None:
    domain, record = rig.domain, rig.domain.record
    assert domain.state == expected.state, f"the domain is {domain.state} ({domain.reason}), not {expected.state}"
    problems = [domain.interrupted, *domain.damaged.values(), domain.pending_problem]
    assert not any(problems), f"the domain says {problems}"
    assert record.graph.violations() == []
    known = {real: name for name, real in names.items()} | {"": ""}
    tree = {known.get(each.name, each.name): known.get(each.parent, each.parent) for each in record.tree.snapshots.values()}
    assert tree == parents(expected.past), f"the tree is {tree}, not {parents(expected.past)}"
    assert known[record.tree.current] == expected.current, f"current is {record.tree.current}, not {expected.current}"
    pending = (known[record.pending.name], record.pending.state.value) if record.pending else None
    wanted = (expected.pending.name, expected.pending.state) if expected.pending else None
    assert pending == wanted, f"pending is {pending}, not {wanted}"
    for name, past in expected.past.items():
        snapshot = record.tree.snapshots[names[name]]
        found = (snapshot.state, snapshot.undo, snapshot.protected, snapshot.memory is not None)
        assert found == (past.state, past.is_undo, past.protected, past.memory is not None), f"{name} is {found}"
        included = {each.target for each in snapshot.disks}
        assert included == set(past.content), f"{name} includes {included}, not {set(past.content)}"
        assert past.is_undo or set(snapshot.left_out) == set(rig.targets) - included, f"{name} leaves out {snapshot.left_out}"


def _check_contents(rig: Rig, expected: Expected, names: Mapping[str, str], reader: BlockReader) -> None:
    graph = rig.domain.record.graph
    for name, past in expected.past.items():
        pins = graph.pins[names[name]]
        assert set(pins) == set(past.content), f"{name} pins {sorted(pins)}, not {sorted(past.content)}"
        for target, pin in pins.items():
            found = reader.tag(pin.image, pin.tag) if pin.tag else reader.image(pin.image, graph.images[pin.image].format)
            differ = different_units(past.content[target], found)
            assert not differ, f"{target} of {name}, {pin}, differs in the units {differ}"
    for target, content in expected.present.items():
        path = graph.active[target]
        differ = different_units(content, reader.image(path, graph.images[path].format))
        assert not differ, f"{target} of the present, {path}, differs in the units {differ}"


def _check_images(rig: Rig, reader: BlockReader) -> None:
    """Compare the headers and internal snapshots of all images with the graph, and see that the graph is at rest."""
    graph = rig.domain.record.graph
    opened = _open_images(rig) if rig.qemu else set()
    for path, image in graph.images.items():
        assert image.format == ("raw" if path.endswith(".raw") else "qcow2")
        if image.format == "raw":
            continue
        below = graph.images[image.backing] if image.backing else None
        backing = reader.backing(path)
        assert backing == ((below.path, below.format) if below else ("", "")), f"{path} backs on {backing}, not {below}"
        pinned = {pin.tag for pins in graph.pins.values() for pin in pins.values() if pin.tag and pin.image == path}
        assert set(reader.tags(path)) == pinned | set(image.doomed), f"{path} has {reader.tags(path)}, not {pinned}"
        assert not image.doomed or path in opened, f"{path} keeps {image.doomed}, and no QEMU has it open"
    assert graph.collect({}, opened) == [], f"left to be collected: {graph.collect({}, opened)}"
    for foreign, content in rig.foreign.items():
        assert graph.images[str(foreign)].origin is Origin.FOREIGN
        assert foreign.read_bytes() == content, f"{foreign} is foreign and was written"


def _check_files(rig: Rig) -> None:
    """See that there is no file that the state does not name, and none missing that it does."""
    record = rig.domain.record
    images = {str(each) for each in rig.images.iterdir()}
    assert images == set(record.graph.images), f"images: {images ^ set(record.graph.images)}"
    links = {f"disks/{target}.{record.graph.images[path].format}": path for target, path in record.graph.active.items()}
    memories = {memory.path for each in record.tree.snapshots.values() if (memory := each.memory)}
    wanted = {
        "domain.libxl-json",
        "disks.env",
        *links,
        *(f"snapshotdata-{escape_for_file(name)}.libxl-json" for name in record.tree.snapshots),
        *(str(Path(path).relative_to(rig.state)) for path in memories),
    }
    found = {str(each.relative_to(rig.state)) for each in rig.state.rglob("*") if not each.is_dir() or each.is_symlink()}
    assert found == wanted, f"state: {found ^ wanted}"
    for link, path in links.items():
        assert str((rig.state / link).readlink()) == path
    told = (rig.state / "disks.env").read_text()
    for target, path in record.graph.active.items():
        assert f'DOMSNAP_{target.upper()}_FILE="{path}"\n' in told, told
        assert f'DOMSNAP_{target.upper()}_FORMAT="{record.graph.images[path].format}"\n' in told, told


def _check_qemu(rig: Rig, expected: Expected) -> None:
    control, graph = rig.running.control, rig.domain.record.graph
    status = control.execute("query-status")
    assert status["running"] == (expected.state == RUNNING), status
    assert status["status"] in {RUNNING: ("running",), PAUSED: ("paused", "prelaunch", "postmigrate")}[expected.state], status
    assert rig.migration_settings() == rig.settings
    sets, jobs = control.execute("query-fdsets"), control.execute("query-jobs")
    assert not jobs, f"QEMU has the jobs {jobs}"
    # While the guest stands still QEMU 7.2 keeps descriptors that were removed, and no longer looks at them when it goes on.
    rig.has_stood_still |= expected.state == PAUSED
    assert rig.has_stood_still or not sets, f"QEMU has the descriptor sets {sets}"
    wanted = {image.path for path in graph.active.values() for image in graph.chain(path)}
    opened = _open_images(rig)
    assert opened == wanted, f"QEMU has open: {opened ^ wanted}"
    for each in control.execute("query-block"):
        target = str(each["qdev"]).removeprefix("/machine/peripheral/").removesuffix("/virtio-backend")
        node = each["inserted"]
        found = (str(Path(node["file"]).resolve()), node["drv"])
        assert found == (graph.active[target], graph.images[graph.active[target]].format), f"{target} is on {found}"


def _open_images(rig: Rig) -> set[str]:
    """Return every file that QEMU has open for a node, whatever the node is for."""
    nodes = rig.running.control.execute("query-named-block-nodes", flat=True)
    return {str(Path(each["file"]).resolve()) for each in nodes}


def check_kinds(rig: Rig, step: Create, formats: Mapping[str, str]) -> list[str]:
    """See that each disk's snapshot is of the kind that was asked for. Returns: the kinds.

    Args:
        formats: of the disks' active images, before the snapshot was taken.
    """
    kinds = []
    for target, pin in rig.domain.record.graph.pins[step.name].items():
        wanted = dict(step.disks).get(target, step.type)
        found = "internal" if pin.tag else "external"
        assert wanted in ("any", found), f"{target} of {step.name} is {found} and was to be {wanted}"
        assert found == "external" or formats[target] != "raw"
        kinds.append(found)
    return kinds


def check_bare(rig: Rig) -> None:
    """See that the domain, which has no snapshot any more, is as it was defined: on its own images, and none besides them."""
    graph = rig.domain.record.graph
    assert graph.active == rig.defined_paths, f"the disks are on {graph.active}"
    assert set(graph.images) == {*rig.defined_paths.values(), *map(str, rig.foreign)}, (
        f"images are left: {sorted(graph.images)}"
    )


def check_with_tools(rig: Rig, expected: Expected) -> None:
    """Let ``qemu-img check`` look at every qcow2 image and every memory file. Raises: AssertionError with what it says."""
    rig.flush()
    record = rig.domain.record
    paths = [path for path, image in record.graph.images.items() if image.format == "qcow2"]
    paths += [memory.path for each in record.tree.snapshots.values() if (memory := each.memory)]
    for path in paths:
        shared = [] if expected.state == SHUTOFF else ["-U"]
        command = ["qemu-img", "check", *shared, "-f", "qcow2", path]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOOL_TIMEOUT_S, check=False)
        assert not done.returncode, f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}"
