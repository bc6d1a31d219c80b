"""Fields of a request that the protocol does not have: found without a cost for requests that have none.

A frame is read by a decoder that refuses them. Only when that one complains is it read again, by one that does not,
and its fields are compared with those that there are.
"""

from __future__ import annotations

import difflib
import functools
import operator
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any, cast, get_args, get_type_hints

import msgspec
from msgspec import Raw, Struct

NAMED = 10
"""Unknown fields that an answer names."""
NAME_LENGTH = 64
"""Characters of an unknown name that are shown."""
SCANNED = 10_000
"""Colons in a frame up to which all of its fields are looked at: each may be a field, and each field costs memory."""

_COMPLAINT = re.compile(
    r"^Object contains unknown field `(?P<name>.*?)`(?: - at `\$\.(?P<path>[A-Za-z.]+)`)?$", re.DOTALL
)


class _Tag(Struct):
    type: Any = None


_tag = msgspec.json.Decoder(_Tag)
_object = msgspec.json.Decoder(dict[str, Raw])


class LenientDecoder:
    """Reads messages and leaves out what is unknown in them."""

    def __init__(self, kinds: Mapping[str, type[Struct]]) -> None:
        self._kinds = kinds
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
            functools.reduce(operator.or_, map(_lenient, kinds.values()))
        )

    def decode(self, frame: str | bytes) -> Struct:
        """Read a frame; raises what the other decoder would, but for unknown fields."""
        found = self._decoder.decode(frame)
        kind = self._kinds[str(found.__struct_config__.tag)]
        return msgspec.convert(found, kind, from_attributes=True)


def complains(error: msgspec.ValidationError) -> bool:
    """Whether it is an unknown field that a decoder refuses."""
    return _COMPLAINT.match(str(error)) is not None


def unknown_fields(frame: str | bytes, kind: type[Struct], error: msgspec.ValidationError) -> list[tuple[str, str]]:
    """Give path and nearest known path (or "") of the unknown fields, in order; of too large a frame, the first.

    There is at least one if the decoder complains of one.
    The nearest is looked for only for those that an answer names.
    `error` is what the decoder said that refuses them.
    """
    colons = frame.count(":") if isinstance(frame, str) else frame.count(b":")
    if colons <= SCANNED:
        paths = list(_unknown(frame, kind, ""))
        if paths:
            return [(path, nearest(path, kind) if number < NAMED else "") for number, path in enumerate(paths)]
        # Of an object that comes twice, the last is looked at here, and the decoder complains of the first.
    found = _COMPLAINT.match(str(error))
    if found is None:
        return []
    path = ".".join(filter(None, (found["path"], found["name"])))
    return [(path, nearest(path, kind))]


def nearest(path: str, kind: type[Struct]) -> str:
    """Give the known field whose name is most like an unknown one, or "" if none is."""
    parent, _, name = path.rpartition(".")
    known = _known(kind)
    # In the same object first; one that was put into the wrong object is as likely as a slip of the pen.
    for among in ([field for field in known if field.rpartition(".")[0] == parent], known):
        folded = {_folded(field.rpartition(".")[2]): field for field in reversed(among)}
        found = difflib.get_close_matches(_folded(name[:NAME_LENGTH]), list(folded), n=1)
        if found:
            return folded[found[0]]
    return ""


def shown(path: str) -> str:
    """Give a name as it is shown: quoted, and cut where it is too long."""
    return repr(path if len(path) <= NAME_LENGTH else path[:NAME_LENGTH] + "…")


def warnings(fields: list[tuple[str, str]], kind: type[Struct]) -> list[str]:
    """Say of each field that it was ignored, and what was meant perhaps."""
    told = [
        f"the field {shown(path)} is unknown and was ignored; {advice(near, kind)}" for path, near in fields[:NAMED]
    ]
    if len(fields) > NAMED:
        more = len(fields) - NAMED
        told.append("1 more unknown field was ignored" if more == 1 else f"{more} more unknown fields were ignored")
    return told


def advice(near: str, kind: type[Struct]) -> str:
    """Say which field was meant, or which there are."""
    if near:
        return f"did you mean {near!r}?"
    return f"{kind.__struct_config__.tag} has {', '.join(map(repr, _known(kind)))}"


def kind_of(frame: str | bytes, kinds: Mapping[str, type[Struct]]) -> type[Struct] | None:
    """Give which message a frame says it is, or None. Raises `DecodeError` and `RecursionError`."""
    try:
        name = _tag.decode(frame).type
    except msgspec.ValidationError:  # it is no object
        return None
    return kinds.get(name) if isinstance(name, str) else None


def _unknown(frame: str | bytes | Raw, kind: type[Struct], prefix: str) -> Iterator[str]:
    nested = {encoded: part for _, encoded, part in _objects(kind)}
    known = {*kind.__struct_encode_fields__, kind.__struct_config__.tag_field}
    for name, value in _object.decode(frame).items():
        if name not in known:
            yield prefix + name
        elif name in nested and bytes(memoryview(value)[:1]) == b"{":
            yield from _unknown(value, nested[name], f"{prefix}{name}.")


@functools.cache
def _known(kind: type[Struct]) -> list[str]:
    """Give the paths of all fields that a message may have."""
    found = list(kind.__struct_encode_fields__)
    for _, name, part in _objects(kind):
        found += [f"{name}.{field}" for field in part.__struct_encode_fields__]
    return sorted(found)


@functools.cache
def _objects(kind: type[Struct]) -> list[tuple[str, str, type[Struct]]]:
    """Give the fields of a message that are objects of the protocol's own: their names here and in the frame."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        (name, encoded, part)
        for name, encoded in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
        if isinstance(hints[name], types.UnionType)
        for part in get_args(hints[name])
        if isinstance(part, type) and issubclass(part, Struct)
    ]


def _lenient(kind: type[Struct]) -> type[Struct]:
    """Make the same message, but with unknown fields allowed, in the objects in it too; these may all be absent."""
    objects = [(name, operator.or_(_lenient(part), None), None) for name, _, part in _objects(kind)]
    tag = cast("str | None", kind.__struct_config__.tag)
    return msgspec.defstruct(
        kind.__name__, objects, bases=(kind,), frozen=True, kw_only=True, forbid_unknown_fields=False, tag=tag
    )


def _folded(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
