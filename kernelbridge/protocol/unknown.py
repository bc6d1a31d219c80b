"""Fields of a request that the protocol does not have: named in its answer, at no cost for requests without any.

A frame is read by a decoder that refuses them. Only when that one complains is the frame read again, by one that leaves
them out, and its fields are compared with those of the message.
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
"""Colons in a frame up to which all its fields are looked at: each may belong to a field, and a field costs memory."""

_COMPLAINT = "Object contains unknown field `"
"""How the decoder's complaint begins; the name follows, of any length, then `_WHERE`."""
_WHERE = re.compile(r"`(?: - at `\$\.(?P<path>[A-Za-z.]{1,100})`)?$")
"""How it ends; with the path of the object that has the field, if that is not the frame's own."""

_object = msgspec.json.Decoder(dict[str, Raw])


class LenientDecoder:
    """Reads messages and leaves out unknown fields."""

    def __init__(self, kinds: Mapping[str, type[Struct]]) -> None:
        """`kinds` has every message by its `type`."""
        self._kinds = kinds
        self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(
            functools.reduce(operator.or_, map(_lenient, kinds.values()))
        )

    def decode(self, frame: bytes) -> Struct:
        """Read a frame. Raises what the strict decoder would raise, except for unknown fields."""
        found = self._decoder.decode(frame)
        kind = self._kinds[str(found.__struct_config__.tag)]
        return msgspec.convert(found, kind, from_attributes=True)


def complains(error: msgspec.ValidationError) -> bool:
    """Return whether a decoder refused a frame because of an unknown field."""
    return str(error).startswith(_COMPLAINT)


def unknown_fields(frame: bytes, kind: type[Struct], error: msgspec.ValidationError) -> list[tuple[str, str]]:
    """Return path and nearest known path (or "") of all unknown fields, in order; of a large frame, of the first only.

    `error` is the complaint of the decoder that refuses them. There is at least one if it complains of one. The nearest
    path is looked for only for those that an answer names.
    """
    if frame.count(b":") <= SCANNED:
        paths = list(_unknown(frame, kind, ""))
        if paths:
            return [(path, nearest(path, kind) if number < NAMED else "") for number, path in enumerate(paths)]
        # Of an object that comes twice, only the last is looked at here, and the decoder may complain of the first.
    if not complains(error):
        return []
    text = str(error)
    end = _WHERE.search(text, max(len(_COMPLAINT), len(text) - 120))
    name = text[len(_COMPLAINT) : end.start() if end else None]
    path = f"{end['path']}.{name}" if end and end["path"] else name
    return [(path, nearest(path, kind))]


def nearest(path: str, kind: type[Struct]) -> str:
    """Return the known field whose name is most like an unknown one, or "" if none is like it."""
    parent, _, name = path.rpartition(".")
    known = _known(kind)
    # In the same object first; then in the others: a field in the wrong object is as likely as a misspelt one.
    for among in ([field for field in known if field.rpartition(".")[0] == parent], known):
        folded = {_folded(field.rpartition(".")[2]): field for field in reversed(among)}
        found = difflib.get_close_matches(_folded(name[:NAME_LENGTH]), list(folded), n=1)
        if found:
            return folded[found[0]]
    return ""


def quoted(path: str) -> str:
    """Return a name in quotes, cut if it is too long to be shown."""
    return repr(path if len(path) <= NAME_LENGTH else path[:NAME_LENGTH] + "…")


def warnings(fields: list[tuple[str, str]], kind: type[Struct]) -> list[str]:
    """Return a sentence for each field: it was ignored, and which one was probably meant."""
    sentences = [
        f"the field {quoted(path)} is unknown and was ignored; {advice(near, kind)}" for path, near in fields[:NAMED]
    ]
    if len(fields) > NAMED:
        more = len(fields) - NAMED
        sentences.append(
            "1 more unknown field was ignored" if more == 1 else f"{more} more unknown fields were ignored"
        )
    return sentences


def advice(near: str, kind: type[Struct]) -> str:
    """Return which field was probably meant, or which fields the message has."""
    if near:
        return f"did you mean {near!r}?"
    return f"{kind.__struct_config__.tag} has {', '.join(map(repr, _known(kind)))}"


def _unknown(frame: bytes | Raw, kind: type[Struct], prefix: str) -> Iterator[str]:
    nested = {encoded: part for _, encoded, part in _objects(kind)}
    known = {*kind.__struct_encode_fields__, kind.__struct_config__.tag_field}
    for name, value in _object.decode(frame).items():
        if name not in known:
            yield prefix + name
        elif name in nested and bytes(memoryview(value)[:1]) == b"{":
            yield from _unknown(value, nested[name], f"{prefix}{name}.")


@functools.cache
def _known(kind: type[Struct]) -> list[str]:
    """Return the paths of all fields that a message may have."""
    found = list(kind.__struct_encode_fields__)
    for _, name, part in _objects(kind):
        found += [f"{name}.{field}" for field in part.__struct_encode_fields__]
    return sorted(found)


@functools.cache
def _objects(kind: type[Struct]) -> list[tuple[str, str, type[Struct]]]:
    """Return the fields of a message that are objects with known fields: name in Python, name in the frame, type."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        (name, encoded, part)
        for name, encoded in zip(kind.__struct_fields__, kind.__struct_encode_fields__, strict=True)
        if isinstance(hints[name], types.UnionType)
        for part in get_args(hints[name])
        if isinstance(part, type) and issubclass(part, Struct)
    ]


def _lenient(kind: type[Struct]) -> type[Struct]:
    """Make a struct for the same message that allows unknown fields, also in its objects, which may all be absent."""
    objects = [(name, operator.or_(_lenient(part), None), None) for name, _, part in _objects(kind)]
    tag = cast("str | None", kind.__struct_config__.tag)
    return msgspec.defstruct(
        kind.__name__, objects, bases=(kind,), frozen=True, kw_only=True, forbid_unknown_fields=False, tag=tag
    )


def _folded(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
