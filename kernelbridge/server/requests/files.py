"""Requests about a workspace's files; each is complete before the connection's next message starts."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping

from kernelbridge.errors import BadRequest, KernelBridgeError
from kernelbridge.protocol.files import SaveFile
from kernelbridge.server import answers
from kernelbridge.server.client import Asker, Handler


async def save(asker: Asker, message: SaveFile) -> None:
    """Write a file."""
    where = message.filename, asker.session_id, asker.request_id
    try:
        result = await asker.workspace.save(message.filename, _content(message))
    except KernelBridgeError as exc:
        asker.answer(answers.not_saved(exc, *where))
    else:
        asker.answer(answers.saved(result, *where))


def _content(message: SaveFile) -> bytes:
    if message.encoding != "base64":
        return message.content.encode()
    try:
        return base64.b64decode(message.content, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise BadRequest("The field 'content' is not base64", str(exc), field="content", code="invalid_field") from exc


HANDLERS: Mapping[type, Handler] = {SaveFile: save}
