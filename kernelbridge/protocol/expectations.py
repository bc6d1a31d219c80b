"""What a field accepts, in words for people who may know neither Python nor this server's code."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from types import MappingProxyType

import msgspec
from msgspec import inspect

_PATTERNS: Mapping[str, str] = MappingProxyType(
    {
        "sessionId": "1-128 characters of letters, digits, '.', '_', '-'",
        "terminalId": "1-64 characters of letters, digits, '.', '_', '-'",
        "ifMatch": "a sha256: 64 lower-case hexadecimal digits",
        "image": "the name of a container image",
        "kernel": "the name of a kernelspec: 1-128 characters of letters, digits, '.', '_', '-'",
        "filename": "a name of 1-1024 characters without control characters",
    }
)
"""What a regular expression of the schema means, by the name of its field."""

_KINDS: Mapping[str, str] = MappingProxyType(
    {
        "str": "text",
        "int": "a number",
        "float": "a number",
        "bool": "true or false",
        "null": "null",
        "array": "a list",
        "object": "an object",
    }
)
"""Kinds of JSON values, by the decoder's names for them."""
_GOT = re.compile(r", got `(?P<kind>[a-z]+)`(?P<inside>.*\[)?")


def expectation(kind: type[msgspec.Struct], path: str, complaint: str) -> str:
    """Describe what the field at `path` (`limits.memory`) of a message accepts, and what it got, if that is known.

    `complaint` is the text of the decoder's `ValidationError`. None of its words are passed on.
    """
    expected = f"expected {_accepted(_field(_type_info(kind), path), path.rpartition('.')[2])}"
    got = _got(complaint)
    return expected if not got or got in expected else f"{expected}; got {got}"


def received(complaint: str) -> str:
    """Describe what was received instead of a message."""
    got = _got(complaint)
    return f"expected one JSON object; got {got}" if got else "expected one JSON object"


_type_info = functools.cache(inspect.type_info)


def _got(complaint: str) -> str:
    found = _GOT.search(complaint)
    return "" if found is None or found["inside"] else _KINDS.get(found["kind"], "")


def _field(kind: inspect.Type, path: str) -> inspect.Type:
    for name in path.split("."):
        kind = next(
            (
                field.type
                for part in _parts(kind)
                if isinstance(part, inspect.StructType)
                for field in part.fields
                if field.encode_name == name
            ),
            inspect.AnyType(),
        )
    return kind


def _parts(kind: inspect.Type) -> list[inspect.Type]:
    """Return the alternatives of a type, without its constraints."""
    if isinstance(kind, inspect.Metadata):
        return _parts(kind.type)
    if isinstance(kind, inspect.UnionType):
        return [part for each in kind.types for part in _parts(each)]
    return [kind]


def _accepted(kind: inspect.Type, name: str) -> str:
    words = dict.fromkeys(_words(part, name) for part in _parts(kind))
    return ", or ".join(words)


def _words(kind: inspect.Type, name: str) -> str:  # noqa: C901, PLR0911  one case for each kind of type
    match kind:
        case inspect.NoneType():
            return "null"
        case inspect.BoolType():
            return "true or false"
        case inspect.StrType(pattern=str()):
            return _PATTERNS.get(name, "a name without control characters")
        case inspect.StrType(max_length=int(most)):
            return f"text of at most {most} characters"
        case inspect.StrType():
            return "text"
        case inspect.IntType():
            return f"a whole number{_range(kind)}"
        case inspect.FloatType():
            return f"a number{_range(kind)}"
        case inspect.LiteralType(values=values):
            return " or ".join(map(repr, values))
        case inspect.ListType(item_type=item, max_length=int(most)):
            return f"a list of at most {most} items, each {_accepted(item, name)}"
        case inspect.DictType():
            return "an object whose values are text"
        case inspect.StructType():
            return "an object"
        case _:
            return "another value"


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    if kind.ge is not None and kind.le is not None:
        return f" from {kind.ge} to {kind.le}"
    if kind.gt is not None and kind.le is not None:
        return f" of more than {kind.gt:g} and at most {kind.le:g}"
    return ""
