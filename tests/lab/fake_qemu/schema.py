# SPDX-License-Identifier: MIT
"""Whether commands, answers and events are what a QMP schema says.

Not here: which schema (``recording``). A refusal is in QEMU's own words, as far as the schema has them.

Source: QEMU docs/devel/qapi-code-gen, "Client JSON Protocol introspection"; qapi/qobject-input-visitor.c for the words.
"""

from collections.abc import Iterable, Mapping
from typing import Any

Info = Mapping[str, Any]
"""An entry of ``query-qmp-schema``."""

_BUILTIN = {
    "string": (str,),
    "int": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
    "object": (dict,),
    "array": (list,),
    "value": (object,),
}
_JSON_TYPES = {"enum": "string", "array": "array", "object": "object"}
_INTEGER = "integer"


class Mismatch(Exception):
    """What was sent is not what the schema says; ``parameter`` is the last name on the way to what is wrong."""

    def __init__(self, text: str, parameter: str = "", error_class: str = "GenericError") -> None:
        self.parameter, self.error_class = parameter, error_class
        super().__init__(text)


class Schema:
    """The schema of one QEMU, or a part of it.

    Args:
        infos: entries of its answer to ``query-qmp-schema``, with all that they refer to.
    """

    def __init__(self, infos: Iterable[Info]) -> None:
        self._infos = {str(info["name"]): info for info in infos}

    def names(self, meta_type: str) -> frozenset[str]:
        """Return the names of all entries of a kind, such as ``command``."""
        return frozenset(name for name, info in self._infos.items() if info["meta-type"] == meta_type)

    def check_command(self, name: str, arguments: object) -> None:
        """Raise Mismatch unless there is a command ``name`` that takes ``arguments``."""
        info = self._of_kind(name, "command")
        if info is None:
            raise Mismatch(f"The command {name} has not been found", error_class="CommandNotFound")
        if not isinstance(arguments, dict):
            raise Mismatch("QMP input member 'arguments' must be an object", "arguments")
        self._check(str(info["arg-type"]), arguments, "")

    def check_answer(self, name: str, answer: object) -> None:
        """Raise Mismatch unless ``answer`` is what the command ``name`` returns."""
        info = self._of_kind(name, "command")
        if info is None:
            raise Mismatch(f"The command {name} has not been found", error_class="CommandNotFound")
        self._check(str(info["ret-type"]), answer, "")

    def check_event(self, name: str, data: object) -> None:
        """Raise Mismatch unless there is an event ``name`` that says ``data``."""
        info = self._of_kind(name, "event")
        if info is None:
            raise Mismatch(f"There is no event {name}")
        self._check(str(info["arg-type"]), data, "")

    def _of_kind(self, name: str, meta_type: str) -> Info | None:
        info = self._infos.get(name)
        return info if info is not None and info["meta-type"] == meta_type else None

    def _check(self, type_name: str, value: object, path: str) -> None:
        info = self._infos[type_name]
        match info["meta-type"]:
            case "builtin":
                if not _is(value, info["json-type"]):
                    raise _wrong_type(path, _expected(info))
            case "enum":
                self._check_enum(info, value, path)
            case "array":
                if not isinstance(value, list):
                    raise _wrong_type(path, "array")
                for index, each in enumerate(value):
                    self._check(str(info["element-type"]), each, f"{path}[{index}]")
            case "alternate":
                self._check(self._choose(info, value, path), value, path)
            case "object":
                if not isinstance(value, dict):
                    raise _wrong_type(path, "object")
                known = self._check_members(info, value, path)
                for name in value:
                    if name not in known:
                        raise Mismatch(f"Parameter '{_below(path, name)}' is unexpected", name)
            case other:
                raise Mismatch(f"the schema has a {other} where a type belongs")

    def _check_enum(self, info: Info, value: object, path: str) -> None:
        if not isinstance(value, str):
            raise _wrong_type(path, "string")
        if value not in {each["name"] for each in info["members"]}:
            raise Mismatch(f"Parameter '{_leaf(path)}' does not accept value '{value}'", _leaf(path))

    def _choose(self, info: Info, value: object, path: str) -> str:
        """Return the branch of an alternate that takes a value of this JSON type."""
        for member in info["members"]:
            branch = self._infos[member["type"]]
            json_type = branch["json-type"] if branch["meta-type"] == "builtin" else _JSON_TYPES[branch["meta-type"]]
            if _is(value, json_type):
                return str(member["type"])
        raise _wrong_type(path, "one of several types")

    def _check_members(self, info: Info, value: Mapping[str, object], path: str) -> set[str]:
        """Check what an object of this type has. Returns: the names that it may have."""
        known = set()
        for member in info["members"]:
            name = str(member["name"])
            known.add(name)
            if name in value:
                self._check(str(member["type"]), value[name], _below(path, name))
            elif "default" not in member:
                raise Mismatch(f"Parameter '{_below(path, name)}' is missing", name)
        if "tag" in info:
            for variant in info["variants"]:
                if variant["case"] == value.get(info["tag"]):
                    known |= self._check_members(self._infos[variant["type"]], value, path)
        return known


def _is(value: object, json_type: str) -> bool:
    if isinstance(value, bool):  # which is an int to Python
        return json_type in ("boolean", "value")
    return isinstance(value, _BUILTIN[json_type])


def _expected(info: Info) -> str:
    return _INTEGER if info["json-type"] == "int" else str(info["json-type"])


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _leaf(path: str) -> str:
    return path.rsplit(".", 1)[-1] or "null"


def _wrong_type(path: str, expected: str) -> Mismatch:
    return Mismatch(f"Invalid parameter type for '{path or 'null'}', expected: {expected}", _leaf(path))
