"""Long texts of an answer, encoded as JSON in parts beforehand, because the answer itself is encoded in one step.

answer(outcome, json=(yield from written({"output": outcome.output, "results": outcome.results})))
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from typing import Any

import msgspec

LONG = 1 << 18
"""A text with more characters is encoded beforehand."""
MANY = 64
"""A list with more items is encoded beforehand."""

_PART = 1 << 16  # characters that are encoded in one step: a millisecond, whatever they are
_SURROGATES = re.compile("[\ud800-\udfff]")
_encoder = msgspec.json.Encoder()


def long(value: object) -> bool:
    """Return whether a text or a list of bundles is to be encoded beforehand."""
    if isinstance(value, str):
        return len(value) > LONG
    return isinstance(value, list) and (len(value) > MANY or any(map(_is_long, value)))


def written(fields: Mapping[str, str | list[dict[str, Any]] | None]) -> Generator[None, None, dict[str, Any]]:
    """Encode the long ones of these fields; yields often. Returns them as `Raw`, which an encoder inserts unchanged."""
    found: dict[str, Any] = {}
    known: dict[int, msgspec.Raw] = {}
    for name, value in fields.items():
        if isinstance(value, str) and long(value):
            if id(value) not in known:  # one text may be two fields
                known[id(value)] = yield from _text(value)
            found[name] = known[id(value)]
        elif isinstance(value, list) and long(value):
            items = []
            for item in value:
                items.append((yield from _bundle(item)))
                yield
            found[name] = items
    return found


def bundle(data: dict[str, Any]) -> Generator[None, None, dict[str, Any]]:
    """Encode the long texts of a MIME bundle; yields often. Returns the bundle with `Raw` in place of them."""
    found = data
    for name, part in data.items():
        if isinstance(part, str) and long(part):
            found = {**found, name: (yield from _text(part))}
    return found


def _is_long(result: dict[str, Any]) -> bool:
    return any(len(part) > LONG for part in result.get("data", {}).values() if isinstance(part, str))


def _bundle(result: dict[str, Any]) -> Generator[None, None, dict[str, Any]]:
    data = yield from bundle(result["data"])
    try:
        return msgspec.Raw(_encoder.encode({**result, "data": data}))  # type: ignore[return-value] # inserted unchanged
    except UnicodeError:
        return {**result, "data": data}  # `codec.dump` replaces its surrogates


def _text(text: str) -> Generator[None, None, msgspec.Raw]:
    written = bytearray(b'"')  # grows in place: joining the parts at the end would be one long step
    for start in range(0, len(text), _PART):
        part = text[start : start + _PART]
        try:
            data = _encoder.encode(part)
        except UnicodeError:
            data = _encoder.encode(_SURROGATES.sub("\ufffd", part))
        written += memoryview(data)[1:-1]
        yield
    written += b'"'
    return msgspec.Raw(written)
