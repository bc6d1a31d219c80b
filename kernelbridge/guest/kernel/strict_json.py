"""Messages in strict JSON, whatever user code displays: part of the hooks, see `hooks.py`.

jupyter_client's own packer warns the user about NaN in a bundle and sends the text 'nan' instead, loses the items of an
iterator that its first attempt has read, and fails for half a surrogate pair, numpy's booleans, and colliding keys.
"""

import datetime
import json
import math
import numbers
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping


def as_json(value):
    """Return a JSON value for a value of another type. Raises TypeError as `json` does."""
    if isinstance(value, datetime.datetime):
        return (value if value.tzinfo else value.astimezone()).isoformat().replace("+00:00", "Z")
    if isinstance(value, datetime.date):
        return value.isoformat()
    if isinstance(value, (bytes, bytearray, memoryview)):
        return b64encode(value).decode("ascii")
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if callable(getattr(value, "tolist", None)):  # numpy's arrays and scalars
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Iterable) and not isinstance(value, Iterator):
        return list(value)
    raise TypeError("Object of type %s is not JSON serializable" % type(value).__name__)


encode_json = json.JSONEncoder(default=as_json, ensure_ascii=False, allow_nan=False).encode


def pack_strictly(message):
    try:
        return encode_json(message).encode("utf-8")
    except (TypeError, ValueError):  # UnicodeEncodeError is one
        return encode_json(strict(message, ())).encode("utf-8")


def strict(value, above):
    """Return a copy that is strict JSON: null for NaN, infinities and numbers with too many digits."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, int):
        return int(value) if value.bit_length() < 10_000 else None
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if id(value) in above:
        raise ValueError("Circular reference detected")
    above = (*above, id(value))
    if isinstance(value, dict):
        return {strict_key(key): strict(item, above) for key, item in value.items()}
    if isinstance(value, (list, tuple, Iterator)):
        return [strict(item, above) for item in value]
    return strict(as_json(value), above)


def strict_key(key):
    if key is None or isinstance(key, (bool, float)):
        return encode_json(key) if not isinstance(key, float) or math.isfinite(key) else repr(float(key))
    if isinstance(key, bytes):
        return key.decode("utf-8", "replace")
    return whole_characters(key if isinstance(key, str) else str(key))


def whole_characters(text):
    """Return text with U+FFFD for halves of surrogate pairs, which UTF-8 cannot encode."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def install_json(kernel):
    session = kernel.session
    if session.packer in ("json", "orjson"):  # the user may have chosen another
        session.pack = pack_strictly
