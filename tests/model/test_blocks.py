# SPDX-License-Identifier: MIT
"""The reader of image files against ``qemu-img``: what it says of a content is what QEMU's own tools say.

Not here: the model test, which believes it.
"""

import random
import subprocess
from pathlib import Path

import pytest

from tests.lab.blocks import BlockReader
from tests.lab.images import make_overlay

SIZE_BYTES = 1 << 20
UNIT = 4096
CLUSTERS = (512, 4096, 65536)
TOOL_TIMEOUT_S = 60.0


def _run(*words: str) -> None:
    subprocess.run(words, check=True, timeout=TOOL_TIMEOUT_S, capture_output=True)


def _make(path: Path, image_format: str, *options: str) -> Path:
    _run("qemu-img", "create", "-q", "-f", image_format, *options, str(path), str(SIZE_BYTES))
    return path


def _scribble(path: Path, image_format: str, chance: random.Random) -> None:
    """Write, zero and discard a few ranges."""
    words = []
    for _ in range(6):
        offset = chance.randrange(SIZE_BYTES // UNIT) * UNIT
        length = min(chance.randrange(1, 40) * UNIT, SIZE_BYTES - offset)
        verb = chance.choice([f"write -q -P {chance.randrange(1, 256)}", "write -q -z", "write -q -z -u", "discard -q"])
        words += ["-c", f"{verb} {offset} {length}"]
    _run("qemu-io", "-d", "unmap", "-f", image_format, *words, str(path))


def _converted(path: Path, image_format: str, *options: str) -> bytes:
    out = path.with_name("converted")
    _run("qemu-img", "convert", "-f", image_format, *options, "-O", "raw", str(path), str(out))
    content = out.read_bytes()
    out.unlink()
    return content


@pytest.mark.parametrize("cluster_bytes", CLUSTERS)
def test_a_chain_with_internal_snapshots_reads_as_qemu_img_reads_it(tmp_path: Path, cluster_bytes: int) -> None:
    chance = random.Random(cluster_bytes)
    base = _make(tmp_path / "base.raw", "raw")
    _scribble(base, "raw", chance)
    middle = make_overlay(tmp_path / "middle.qcow2", "base.raw", "raw")
    top = tmp_path / "top.qcow2"
    options = ["-o", f"cluster_size={cluster_bytes}", "-F", "qcow2", "-b", str(middle)]
    _run("qemu-img", "create", "-q", "-f", "qcow2", *options, str(top))
    tags = []
    for image in (middle, top):
        for number in range(3):
            _scribble(image, "qcow2", chance)
            tags.append((image, f"a tag {number}"))
            _run("qemu-img", "snapshot", "-c", tags[-1][1], str(image))
        _scribble(image, "qcow2", chance)
    _run("qemu-img", "snapshot", "-d", "a tag 1", str(top))
    tags.remove((top, "a tag 1"))

    reader = BlockReader()

    assert reader.image(base, "raw") == _converted(base, "raw")
    for image in (middle, top):
        assert reader.image(image, "qcow2") == _converted(image, "qcow2")
    for image, tag in tags:
        assert reader.tag(image, tag) == _converted(image, "qcow2", "-l", f"snapshot.name={tag}")
    assert reader.tags(top) == ["a tag 0", "a tag 2"]
    assert reader.backing(middle) == (str(base), "raw")
    assert reader.backing(top) == (str(middle), "qcow2")


def test_an_overlay_that_is_larger_than_what_it_backs_on_reads_zeroes_behind_its_end(tmp_path: Path) -> None:
    base = tmp_path / "base.raw"
    base.write_bytes(b"\xaa" * 70_144)
    top = tmp_path / "top.qcow2"
    _run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(base), str(top), str(SIZE_BYTES))

    assert BlockReader().image(top, "qcow2") == b"\xaa" * 70_144 + bytes(SIZE_BYTES - 70_144)
    assert BlockReader().image(top, "qcow2") == _converted(top, "qcow2")


def test_an_internal_snapshot_keeps_the_size_that_the_disk_had(tmp_path: Path) -> None:
    image = _make(tmp_path / "image.qcow2", "qcow2")
    _scribble(image, "qcow2", random.Random(1))
    before = _converted(image, "qcow2")
    _run("qemu-img", "snapshot", "-c", "small", str(image))
    _run("qemu-img", "resize", "-q", str(image), str(2 * SIZE_BYTES))

    assert BlockReader().tag(image, "small") == before
    assert len(BlockReader().image(image, "qcow2")) == 2 * SIZE_BYTES


@pytest.mark.parametrize("options", [("-o", "extended_l2=on"), ("-o", "compat=0.10")])
def test_what_is_not_understood_is_not_guessed(tmp_path: Path, options: tuple[str, ...]) -> None:
    image = _make(tmp_path / "image.qcow2", "qcow2", *options)

    with pytest.raises(ValueError, match="not known here"):
        BlockReader().image(image, "qcow2")


def test_compressed_clusters_are_not_guessed(tmp_path: Path) -> None:
    plain = _make(tmp_path / "plain.raw", "raw")
    plain.write_bytes(b"\x11" * SIZE_BYTES)
    _run("qemu-img", "convert", "-c", "-f", "raw", "-O", "qcow2", str(plain), str(tmp_path / "small.qcow2"))

    with pytest.raises(ValueError, match="compressed"):
        BlockReader().image(tmp_path / "small.qcow2", "qcow2")


def test_a_tag_that_is_not_there_is_named_with_those_that_are(tmp_path: Path) -> None:
    image = _make(tmp_path / "image.qcow2", "qcow2")
    _run("qemu-img", "snapshot", "-c", "here", str(image))

    with pytest.raises(ValueError, match=r"'gone', only .*here"):
        BlockReader().tag(image, "gone")
