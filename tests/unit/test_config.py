# SPDX-License-Identifier: MIT
"""The configuration: what a good one means, every mistake with its line, and texts of any kind."""

import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapd.config import Config, Limits, Mistake, Timeouts, check, load
from snapd.model.domain import DiskDefinition, DiskPolicy, DomainDefinition
from snapd.model.plan import Live, Quiesce
from snapd.model.snapshot import SnapshotType
from snapd.yaml_file import FILE_LIMIT_BYTES

PACKAGING = Path(__file__).parents[2] / "packaging"
UUID = "a4eb4367-b880-3b11-d1e8-d5d2b2c1a3aa"
ANY_DISK = "{target: a, image: /a, format: raw"


def write_main(directory: Path, content: str | bytes) -> Path:
    path = directory / "domsnapd.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def write_domain(directory: Path, name: str, content: str | bytes) -> Path:
    path = directory / "domains.d" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def found(directory: Path) -> list[tuple[str, int, str]]:
    return [(each.path.name, each.line, each.sentence) for each in check(directory / "domsnapd.yaml")]


def load_domains(directory: Path) -> dict[str, DomainDefinition]:
    return {domain.name: domain for domain in load(directory / "domsnapd.yaml")[1]}


# Good ones


def test_without_files_the_defaults_apply(tmp_path: Path) -> None:
    defaults = Config(
        snapshots_directory=None,
        type=SnapshotType.ANY,
        live=Live.AUTO,
        quiesce=Quiesce.AUTO,
        undo=True,
        limits=Limits(jobs=200, jobs_per_caller=10, chain=64, free_bytes=2**30),
        timeouts=Timeouts(monitor_s=5, agent_s=5, freeze_s=10),
    )
    assert load(tmp_path / "domsnapd.yaml") == (defaults, [], [])


@pytest.mark.parametrize("content", ["", "# nothing\n", "---\n", "snapshots:\nlimits: null\ntimeouts: ~\n", "\ufeff{}"])
def test_an_empty_main_file_means_the_defaults(tmp_path: Path, content: str) -> None:
    assert load(write_main(tmp_path, content), required=True) == (Config(), [], [])


def test_every_key_of_the_main_file(tmp_path: Path) -> None:
    write_main(
        tmp_path,
        """
snapshots: {type: external, directory: /srv/memory, image_directory: null, live: require, quiesce: require, undo: false}
limits: {jobs: 20, jobs_per_caller: 3, chain: 1024, free_bytes: 512MiB}
timeouts: {monitor: 2min, agent: 3s, freeze: 1min}
monitors: null
""",
    )
    config, _, mistakes = load(tmp_path / "domsnapd.yaml")
    assert mistakes == []
    assert config == Config(
        snapshots_directory="/srv/memory",
        type=SnapshotType.EXTERNAL,
        live=Live.REQUIRE,
        quiesce=Quiesce.REQUIRE,
        undo=False,
        limits=Limits(20, 3, 1024, 512 << 20),
        timeouts=Timeouts(monitor_s=120, agent_s=3, freeze_s=60),
    )


def test_every_key_of_a_domain_file(tmp_path: Path) -> None:
    path = write_domain(
        tmp_path,
        "other.yaml",
        f"""
name: vm1
uuid: {UUID.upper()}
monitor: /run/qemu/vm1.monitor
agent: /run/qemu/vm1.agent
disks:
  - target: virtio-disk0
    image: /srv/vm/vm1/disk0.raw
    format: raw
    snapshot: external
  - {{target: "1", image: /srv/vm/vm1/disk1, format: qcow2}}
""",
    )
    _, domains, mistakes = load(tmp_path / "domsnapd.yaml")
    assert mistakes == []
    disks = (
        DiskDefinition("virtio-disk0", "/srv/vm/vm1/disk0.raw", "raw", DiskPolicy.EXTERNAL),
        DiskDefinition("1", "/srv/vm/vm1/disk1", "qcow2", DiskPolicy.ANY),
    )
    assert domains == [DomainDefinition("vm1", "/run/qemu/vm1.monitor", UUID, disks, str(path), "/run/qemu/vm1.agent")]


def test_a_domain_is_called_after_its_file_and_domains_are_in_the_order_of_files(tmp_path: Path) -> None:
    for name in ("b.yaml", "a.b.yaml", "ü.yaml"):
        write_domain(tmp_path, name, f"monitor: /run/{name}")
    assert list(load_domains(tmp_path)) == ["a.b", "b", "ü"]


def test_files_that_are_no_configuration_are_left_alone(tmp_path: Path) -> None:
    for name in (".a.yaml", "a.yaml~", "a.yaml.dpkg-dist", "README"):
        write_domain(tmp_path, name, "{")
    assert load(tmp_path / "domsnapd.yaml") == (Config(), [], [])


def test_the_source_is_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_domain(tmp_path, "a.yaml", "monitor: /run/a")
    monkeypatch.chdir(tmp_path)
    assert load(Path("domsnapd.yaml"))[1][0].source == str(path)


@pytest.mark.parametrize("written", ["no", "No", "off", "false", "'no'"])
def test_no_is_a_word_whatever_yaml_makes_of_it(tmp_path: Path, written: str) -> None:
    write_main(tmp_path, f"snapshots: {{live: {written}}}")
    write_domain(tmp_path, "a.yaml", f"monitor: /run/a\ndisks: [{ANY_DISK}, snapshot: {written}}}]")
    config, domains, mistakes = load(tmp_path / "domsnapd.yaml")
    assert (mistakes, config.live, domains[0].disks[0].policy) == ([], Live.NO, DiskPolicy.NO)


@pytest.mark.parametrize(
    ("written", "config"),
    [
        ("type: any", Config(type=SnapshotType.ANY)),
        ("type: internal", Config(type=SnapshotType.INTERNAL)),
        ("quiesce: auto", Config(quiesce=Quiesce.AUTO)),
        ("quiesce: no", Config(quiesce=Quiesce.NO)),
        ("quiesce: off", Config(quiesce=Quiesce.NO)),
        ("undo: yes", Config(undo=True)),
        ("undo: true", Config(undo=True)),
        ("undo: no", Config(undo=False)),
        ("undo: 'no'", Config(undo=False)),
        ("live: auto", Config(live=Live.AUTO)),
    ],
)
def test_every_word_about_snapshots(tmp_path: Path, written: str, config: Config) -> None:
    assert load(write_main(tmp_path, f"snapshots: {{{written}}}")) == (config, [], [])


@pytest.mark.parametrize("policy", DiskPolicy)
def test_every_snapshot_policy(tmp_path: Path, policy: DiskPolicy) -> None:
    write_domain(tmp_path, "a.yaml", f"monitor: /run/a\ndisks: [{ANY_DISK}, snapshot: {policy}}}]")
    assert load_domains(tmp_path)["a"].disks[0].policy is policy


@pytest.mark.parametrize(
    ("written", "size_bytes"),
    [("0", 0), ("4096", 4096), ("'4096'", 4096), ("1KiB", 1024), ("3 MiB", 3 << 20), ("2GiB", 2 << 30), ("10TiB", 10 << 40)],
)
def test_sizes(tmp_path: Path, written: str, size_bytes: int) -> None:
    config, _, mistakes = load(write_main(tmp_path, f"limits: {{free_bytes: {written}}}"))
    assert (mistakes, config.limits.free_bytes) == ([], size_bytes)


@pytest.mark.parametrize(("written", "timeout_s"), [("1s", 1), ("90s", 90), ("2min", 120), ("3h", 10800), ("1 d", 86400)])
def test_times(tmp_path: Path, written: str, timeout_s: int) -> None:
    config, _, mistakes = load(write_main(tmp_path, f"timeouts: {{monitor: {written}}}"))
    assert (mistakes, config.timeouts.monitor_s) == ([], timeout_s)


def test_the_packaged_examples_are_good_and_the_main_one_holds_the_defaults(tmp_path: Path) -> None:
    write_main(tmp_path, (PACKAGING / "domsnapd.yaml").read_bytes())
    write_domain(tmp_path, "example.yaml", (PACKAGING / "domains.d-example.yaml").read_bytes())
    config, domains, mistakes = load(tmp_path / "domsnapd.yaml", required=True)
    assert (config, mistakes) == (Config(), [])
    assert [(domain.name, [disk.policy for disk in domain.disks]) for domain in domains] == [
        ("vm1", [DiskPolicy.EXTERNAL, DiskPolicy.NO])
    ]


# Mistakes in the main file


@pytest.mark.parametrize(
    ("content", "line", "sentence"),
    [
        ("\nsnapshot: {}", 2, "there is no key 'snapshot' here; did you mean 'snapshots'?"),
        ("x: 1", 1, "there is no key 'x' here; there can be snapshots, limits, timeouts"),
        ("limits:\n  Jobs: 1", 2, "there is no key 'Jobs' here; did you mean 'jobs'?"),
        ("limits:\n  jobs: 1\n  chain: 2\n  jobs: 3", 4, "'jobs' stands here a second time; the first is in line 2"),
        ("limits:\n  jobs: null\n  jobs: 3", 3, "'jobs' stands here a second time; the first is in line 2"),
        ("limits:\n- jobs", 2, "'limits' must be a mapping ('key: value'), and it is a list"),
        ("limits: 5", 1, "'limits' must be a mapping ('key: value'), and it is a number"),
        ("# one\n- two", 2, "the file must be a mapping ('key: value'), and it is a list"),
        ("text", 1, "the file must be a mapping ('key: value'), and it is text"),
        ("? [a]\n: b", 1, "a key must be a word, and this one is a list"),
        ("<<: {limits: {}}", 1, "there is no key '<<' here; there can be snapshots, limits, timeouts"),
        ("\nmonitors: [/run/*]", 2, "'monitors' is not available in this version; take it out"),
        ("snapshots: {image_directory: /x}", 1, "'image_directory' is not available in this version; take it out"),
        ("snapshots:\n\n  quiesce: yes", 3, "'quiesce' must be auto or require or no, and it is 'yes'"),
        ("snapshots: {undo: auto}", 1, "'undo' must be yes or no, and it is 'auto'"),
        (
            "timeouts: {agent: forever}",
            1,
            "'agent' must be a time from 1s to 1d such as 5s (s, min, h or d), and it is 'forever'",
        ),
        ("timeouts:\n  freeze: 0s", 2, "'freeze' must be a time from 1s to 1d such as 5s (s, min, h or d), and it is '0s'"),
        ("timeouts: {migrate: 5s}", 1, "'migrate' is not available in this version; take it out"),
        ("snapshots: {directory: memory}", 1, "'directory' must be an absolute path, and it is 'memory'"),
        ("snapshots: {directory: [/a]}", 1, "'directory' must be text, and it is a list"),
        ("snapshots: {live: yes}", 1, "'live' must be auto or require or no, and it is 'yes'"),
        ("snapshots: {type: both}", 1, "'type' must be any or internal or external, and it is 'both'"),
        ("limits: {jobs: 0}", 1, "'jobs' must be a number from 1 to 10000, and it is '0'"),
        ("limits: {jobs: -1}", 1, "'jobs' must be a number from 1 to 10000, and it is '-1'"),
        ("limits: {jobs: many}", 1, "'jobs' must be a number from 1 to 10000, and it is 'many'"),
        ("limits: {jobs: true}", 1, "'jobs' must be a number from 1 to 10000, and it is 'true'"),
        ("limits: {jobs: 010}", 1, "'jobs' must be a number from 1 to 10000, and it is '010'"),
        ("limits: {jobs: [1]}", 1, "'jobs' must be a number from 1 to 10000, and it is a list"),
        ("limits: {jobs_per_caller: 10001}", 1, "'jobs_per_caller' must be a number from 1 to 10000, and it is '10001'"),
        ("limits: {chain: 1025}", 1, "'chain' must be a number from 1 to 1024, and it is '1025'"),
        ('limits: {chain: "64"}', 1, "'chain' must be a number from 1 to 1024, and it is '64' in quotes"),
        (
            "limits: {free_bytes: 1GB}",
            1,
            "'free_bytes' must be a size such as 1GiB (bytes, KiB, MiB, GiB or TiB), and it is '1GB'",
        ),
        ("timeouts: {monitor: 5}", 1, "'monitor' must be a time from 1s to 1d such as 5s (s, min, h or d), and it is '5'"),
        ("timeouts: {monitor: 0s}", 1, "'monitor' must be a time from 1s to 1d such as 5s (s, min, h or d), and it is '0s'"),
        ("timeouts: {monitor: 25h}", 1, "'monitor' must be a time from 1s to 1d such as 5s (s, min, h or d), and it is '25h'"),
    ],
)
def test_a_mistake_in_the_main_file_has_its_line_and_the_default_stands_in(
    tmp_path: Path, content: str, line: int, sentence: str
) -> None:
    path = write_main(tmp_path, content)
    config, domains, mistakes = load(path)
    assert mistakes == [Mistake(path, line, sentence)]
    assert domains == []
    assert config.live is Live.AUTO and config.timeouts == Timeouts() and config.snapshots_directory is None


def test_a_mistake_prints_as_file_line_and_sentence(tmp_path: Path) -> None:
    path = write_main(tmp_path, "\n\nmonitors: []")
    assert [str(each) for each in check(path)] == [f"{path}:3: 'monitors' is not available in this version; take it out"]


def test_a_mistake_in_the_main_file_does_not_hide_the_domains(tmp_path: Path) -> None:
    write_main(tmp_path, "x: 1")
    write_domain(tmp_path, "a.yaml", "monitor: /run/a")
    assert list(load_domains(tmp_path)) == ["a"]


def test_a_main_file_that_was_asked_for_must_be_there(tmp_path: Path) -> None:
    path = tmp_path / "domsnapd.yaml"
    assert check(path, required=True) == [Mistake(path, 1, "the file cannot be read: No such file or directory")]


def test_a_main_file_that_leads_nowhere_is_not_taken_for_a_missing_one(tmp_path: Path) -> None:
    (tmp_path / "domsnapd.yaml").symlink_to("nowhere")
    assert found(tmp_path) == [("domsnapd.yaml", 1, "the file cannot be read: No such file or directory")]


# Mistakes in a domain file


@pytest.mark.parametrize(
    ("content", "line", "sentence"),
    [
        ("", 1, "'monitor' is missing"),
        ("\n\nname: a", 3, "'monitor' is missing"),
        ("name: a\nmonitor:", 1, "'monitor' is missing"),
        ("monitor: run/a", 1, "'monitor' must be an absolute path, and it is 'run/a'"),
        ("monitor: /run/" + "a" * 103, 1, "'monitor' has 108 bytes, and the path of a Unix socket 107 at most"),
        ('monitor: ""', 1, "'monitor' is empty"),
        ('monitor: "/run/\\0"', 1, "'monitor' has a NUL or half of a surrogate pair in it"),
        ('monitor: "/run/\\uD800"', 1, "'monitor' has a NUL or half of a surrogate pair in it"),
        ("monitor: {path: /a}", 1, "'monitor' must be text, and it is a mapping"),
        ("monitor: /run/a\nmonitr: /b", 2, "there is no key 'monitr' here; did you mean 'monitor'?"),
        ("monitor: /run/a\nmonitor: /b", 2, "'monitor' stands here a second time; the first is in line 1"),
        ("monitor: /run/a\nagent: run/b", 2, "'agent' must be an absolute path, and it is 'run/b'"),
        ("monitor: /run/a\nagent: /run/" + "a" * 103, 2, "'agent' has 108 bytes, and the path of a Unix socket 107 at most"),
        ("monitor: /run/a\nunit: b.service", 2, "'unit' is not available in this version; take it out"),
        ("monitor: /run/a\nowners: [b]", 2, "'owners' is not available in this version; take it out"),
        ("monitor: /run/a\nname: 123456", 2, "'name' must be text, and YAML takes '123456' for a number; put it in quotes"),
        ("monitor: /run/a\nname: on", 2, "'name' must be text, and YAML takes 'on' for true or false; put it in quotes"),
        (
            "monitor: /run/a\nname: 2026-01-31",
            2,
            "'name' must be text, and YAML takes '2026-01-31' for a date; put it in quotes",
        ),
        ("monitor: /run/a\nname: a/b", 2, "'name' cannot be 'a/b': it has a '/'"),
        ("monitor: /run/a\nname: 'no\tgood'", 2, "'name' cannot be 'no\\tgood': it has a control character"),
        ("monitor: /run/a\nuuid: a4eb", 2, f"'uuid' must look like {UUID}, and it is 'a4eb'"),
        (f"monitor: /run/a\nuuid: '{{{UUID}}}'", 2, f"'uuid' must look like {UUID}, and it is '{{{UUID}}}'"),
        (f"monitor: /run/a\nuuid: {'0' * 8}-0000-0000-0000-{'0' * 12}", 2, "'uuid' cannot be all zeros"),
        ("monitor: /run/a\ndisks: {a: b}", 2, "'disks' must be a list, and it is a mapping"),
        ("monitor: /run/a\ndisks:\n  - sda", 3, "a disk must be a mapping ('key: value'), and it is text"),
        ("monitor: /run/a\ndisks:\n  -", 3, "a disk must be a mapping ('key: value'), and it is nothing"),
        ("monitor: /run/a\ndisks:\n  - image: /a\n    format: raw", 3, "'target' is missing"),
        ("monitor: /run/a\ndisks:\n  - target: a\n    format: raw", 3, "'image' is missing"),
        ("monitor: /run/a\ndisks:\n  - target: a\n    image: /a", 3, "'format' is missing"),
        ("monitor: /run/a\ndisks:\n- {target: a, image: a, format: raw}", 3, "'image' must be an absolute path, and it is 'a'"),
        (
            "monitor: /run/a\ndisks:\n- {target: a, image: /a, format: vmdk}",
            3,
            "'format' must be raw or qcow2, and it is 'vmdk'",
        ),
        (
            "monitor: /run/a\ndisks:\n- {target: 0, image: /a, format: raw}",
            3,
            "'target' must be text, and YAML takes '0' for a number; put it in quotes",
        ),
        (
            f"monitor: /run/a\ndisks:\n- {ANY_DISK},\n snapshot: on}}",
            4,
            "'snapshot' must be any or internal or external or no, and it is 'on'",
        ),
        (
            f"monitor: /run/a\ndisks:\n- {ANY_DISK},\n snapsot: no}}",
            4,
            "there is no key 'snapsot' here; did you mean 'snapshot'?",
        ),
        (
            f"monitor: /run/a\ndisks:\n- {ANY_DISK}}}\n- {{target: a, image: /b, format: raw}}",
            4,
            "'target' is 'a', which the disk of line 3 has already",
        ),
        (
            f"monitor: /run/a\ndisks:\n- {ANY_DISK}}}\n- {{target: b, image: /./a, format: raw}}",
            4,
            "'image' is '/a', which the disk of line 3 has already",
        ),
        (
            f"monitor: /run/a\ndisks: [{ANY_DISK}}}, {{target: a, image: /b, format: raw}}]",
            2,
            "'target' is 'a', which the disk of",
        ),
    ],
)
def test_a_mistake_in_a_domain_file_has_its_line_and_leaves_out_that_domain(
    tmp_path: Path, content: str, line: int, sentence: str
) -> None:
    write_domain(tmp_path, "bad.yaml", content)
    write_domain(tmp_path, "good.yaml", "monitor: /run/good")
    ((name, at, said),) = found(tmp_path)
    assert (name, at) == ("bad.yaml", line)
    assert said.startswith(sentence)
    assert list(load_domains(tmp_path)) == ["good"]


def test_all_mistakes_of_a_file_are_found_in_the_order_of_lines(tmp_path: Path) -> None:
    write_domain(tmp_path, "a.yaml", "name: 1\ndisks:\n- {target: 1, image: b}\nuuid: x\nmonitor: y\nmore: z\n")
    assert [(line, sentence.split(" ")[0]) for _, line, sentence in found(tmp_path)] == [
        (1, "'name'"),
        (3, "'target'"),
        (3, "'image'"),
        (3, "'format'"),
        (4, "'uuid'"),
        (5, "'monitor'"),
        (6, "there"),
    ]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("5.yaml", "the domain cannot be called '5' after its file: it is a number of fewer than 10 digits"),
        ("a\tb.yaml", "the domain cannot be called 'a\\tb' after its file: it has a control character"),
        ("a.yml", "only files that end in .yaml are read; rename it"),
        (os.fsdecode(b"\xff.yaml"), "the path of this file is not UTF-8, which D-Bus cannot carry; rename it"),
    ],
)
def test_a_file_whose_name_will_not_do(tmp_path: Path, name: str, sentence: str) -> None:
    write_domain(tmp_path, name, "monitor: /run/a")
    (mistake,) = check(tmp_path / "domsnapd.yaml")
    assert mistake.sentence.startswith(sentence)
    assert mistake.line == 1
    str(mistake).encode()
    assert load_domains(tmp_path) == {}


@pytest.mark.parametrize(
    ("first", "second", "line", "key"),
    [
        ("name: x\nmonitor: /run/a", "monitor: /run/b\nname: x", 2, "name"),
        ("name: b\nmonitor: /run/a", "monitor: /run/b", 1, "name"),
        (f"monitor: /run/a\nuuid: {UUID}", f"monitor: /run/b\n\nuuid: {UUID.upper()}", 3, "uuid"),
        ("monitor: /run/a", "\nmonitor: //run/x/../a", 2, "monitor"),
        ("monitor: /run/a\nagent: /run/x", "monitor: /run/b\nagent: /run/./x", 2, "agent"),
    ],
)
def test_what_two_files_claim_stays_with_the_first(tmp_path: Path, first: str, second: str, line: int, key: str) -> None:
    first_path = write_domain(tmp_path, "a.yaml", first)
    second_path = write_domain(tmp_path, "b.yaml", second)
    (mistake,) = check(tmp_path / "domsnapd.yaml")
    assert (mistake.path, mistake.line) == (second_path, line)
    assert mistake.sentence.startswith(f"{key!r} is ")
    assert f"{first_path}:" in mistake.sentence
    assert [domain.source for domain in load_domains(tmp_path).values()] == [str(first_path)]


def test_a_file_that_is_left_out_claims_nothing(tmp_path: Path) -> None:
    write_domain(tmp_path, "a.yaml", "name: x\nmonitor: /run/x\nunit: y.service")
    write_domain(tmp_path, "b.yaml", "name: x\nmonitor: /run/x")
    assert [name for name, _, _ in found(tmp_path)] == ["a.yaml"]
    assert list(load_domains(tmp_path)) == ["x"]


# Files that cannot be read


@pytest.mark.parametrize(
    ("content", "line", "sentence"),
    [
        ("a:\n\tb: 1", 2, "a tab cannot indent or separate in YAML; use spaces"),
        ("monitor: a: b", 1, "this is not YAML: mapping values are not allowed here"),
        ("a: 1\nb: [1,\n2\n\n", 3, "this is not YAML: while parsing a flow sequence from line 2, expected ',' or ']'"),
        ("monitor: /a\nname: 'x\n", 2, "this is not YAML: while scanning a quoted scalar, found unexpected end of stream"),
        ("monitor: /a\n---\nname: x", 2, "this is not YAML: expected a single document in the stream from line 1, but found"),
        ('monitor: /a\nname: "\\UFFFFFFFF"', 2, "this is not YAML: "),
        (f"%YAML {'1' * 5000}.1\n--- {{}}", 1, "this is not YAML: "),
        ("monitor: &here /a", 1, "'*', '&' and '!' mean something to YAML that is not used here"),
        ("monitor: /a\nname: *there", 2, "'*', '&' and '!' mean something to YAML that is not used here"),
        ("monitor: !!python/name:os.system ''", 1, "'*', '&' and '!' mean something to YAML that is not used here"),
        ("a: &a [x]\nb: &b [*a, *a]\nc: &c [*b, *b]", 1, "'*', '&' and '!' mean something to YAML that is not used here"),
        ("monitor: /a\nname: \0", 2, "the character U+0000 is not allowed"),
        (b"monitor: /a\n\nname: \xff", 3, "the byte 0xFF is not UTF-8"),
        (b"\xff\xfem\0:\0", 1, "the byte 0xFF is not UTF-8"),
        ("\n" + "[" * 100_000, 2, "this is nested more than 8 deep"),
        ("- " * 1000, 1, "this is nested more than 8 deep"),
        ("#" * (FILE_LIMIT_BYTES + 1), 1, "the file has more than 1 MiB"),
    ],
)
def test_what_is_no_configuration_at_all_is_one_mistake(tmp_path: Path, content: str | bytes, line: int, sentence: str) -> None:
    write_domain(tmp_path, "bad.yaml", content)
    write_domain(tmp_path, "good.yaml", "monitor: /run/good")
    ((name, at, said),) = found(tmp_path)
    assert (name, at) == ("bad.yaml", line)
    assert said.startswith(sentence)
    assert list(load_domains(tmp_path)) == ["good"]


def test_a_file_of_just_the_limit_is_read(tmp_path: Path) -> None:
    write_domain(tmp_path, "a.yaml", "monitor: /a\n#".ljust(FILE_LIMIT_BYTES, "#"))
    assert list(load_domains(tmp_path)) == ["a"]


def test_what_is_no_file_is_a_mistake_and_is_not_waited_for(tmp_path: Path) -> None:
    write_domain(tmp_path, "good.yaml", "monitor: /run/good")
    os.mkfifo(tmp_path / "domains.d" / "fifo.yaml")
    (tmp_path / "domains.d" / "directory.yaml").mkdir()
    (tmp_path / "domains.d" / "link.yaml").symlink_to("link.yaml")
    assert found(tmp_path) == [
        ("directory.yaml", 1, "this is no regular file"),
        ("fifo.yaml", 1, "this is no regular file"),
        ("link.yaml", 1, "the file cannot be read: Too many levels of symbolic links"),
    ]
    assert list(load_domains(tmp_path)) == ["good"]


def test_a_domains_directory_that_is_none_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "domains.d").write_text("")
    assert found(tmp_path) == [("domains.d", 1, "the directory cannot be read: Not a directory")]


# Texts of any kind

WORDS = (
    *(
        "name",
        "uuid",
        "monitor",
        "disks",
        "agent",
        "target",
        "image",
        "format",
        "snapshot",
        "snapshots",
        "limits",
        "jobs",
        "<<",
    ),
    *(
        ": ",
        ":",
        "\n",
        "\n  ",
        "\n- ",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "? ",
        "\t",
        "---\n",
        "...\n",
        "%YAML 1.1\n",
        "# ",
        "|\n",
        ">-\n",
    ),
    *(
        "&a ",
        "*a",
        "!!int ",
        "!<x>",
        '"',
        "'",
        "\\",
        '"\\x',
        '"\\uD800"',
        "\r\n",
        "\u2028",
        "\x85",
        "\ufeff",
        "\0",
        "\ud7ff",
        "𝄞",
    ),
    *(
        "no",
        "yes",
        "~",
        "=",
        "0",
        "010",
        "0x",
        "1:30",
        "1e3",
        ".inf",
        "2026-13-99",
        "1GiB",
        "5s",
        "/run/a",
        "raw",
        "qcow2",
        UUID,
    ),
)
GOOD = (PACKAGING / "domains.d-example.yaml").read_text() + (PACKAGING / "domsnapd.yaml").read_text()
soups = st.lists(st.sampled_from(WORDS), max_size=40).map("".join).map(str.encode)
damaged = st.tuples(st.integers(0, len(GOOD)), st.integers(0, 40), st.sampled_from(WORDS)).map(
    lambda cut: (GOOD[: cut[0]] + cut[2] + GOOD[cut[0] + cut[1] :]).encode()
)


@settings(max_examples=400, deadline=None)
@given(
    content=st.one_of(
        soups, damaged, st.text(max_size=60).map(lambda text: text.encode("utf-8", "replace")), st.binary(max_size=60)
    )
)
def test_any_text_is_a_configuration_or_a_mistake_in_one_of_its_lines(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        write_main(directory, content)
        write_domain(directory, "a.yaml", content)
        _, domains, mistakes = load(directory / "domsnapd.yaml")
    most_lines = len(content.decode("utf-8", "replace").splitlines()) + 1
    assert all(1 <= mistake.line <= most_lines and mistake.sentence for mistake in mistakes)
    for mistake in mistakes:
        str(mistake).encode()
    assert bool(domains) != any(mistake.path.name == "a.yaml" for mistake in mistakes)
