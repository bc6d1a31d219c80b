"""The log: structlog for our events, and the records of other libraries in the same form, all on one stream.

Pass values as keywords (`log.info("sandbox_started", session=…)`), never inside the event: they may come from clients,
and the form escapes them.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping
from types import MappingProxyType
from typing import Any, Final, Literal, TextIO

import structlog

LEVELS: Final[Mapping[str, int]] = MappingProxyType(
    {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
)

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# Libraries whose events would hide ours at the level `debug`.
_CHATTY: Final = ("asyncio", "docker", "urllib3")

# Its only warning quotes the subprotocols that a client offers, and a token may be one.
_QUOTING: Final = ("aiohttp.websocket",)


def configure(
    form: Literal["console", "json"],
    level: Literal["debug", "info", "warning", "error"],
    stream: TextIO | None = None,
) -> None:
    """Set up the log of this process, by default on standard error. Call it once, before anything logs."""
    stream = sys.stderr if stream is None else stream
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True) if form == "json" else _local_time(),
    ]
    last: list[structlog.typing.Processor] = (
        # As text: the structured form would log local variables, and secrets among them.
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if form == "json"
        else [
            _escape_event,
            structlog.dev.ConsoleRenderer(
                colors=stream.isatty(),
                pad_event_to=0,
                repr_native_str=True,
                exception_formatter=structlog.dev.plain_traceback,
            ),
        ]
    )
    structlog.configure(
        processors=[*shared, *last],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(stream),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    logging.basicConfig(handlers=[handler], level=LEVELS[level], force=True)
    logging.captureWarnings(capture=True)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(LEVELS[level], logging.INFO))
    for name in _QUOTING:
        logging.getLogger(name).setLevel(logging.ERROR)


def _local_time() -> structlog.typing.Processor:
    return structlog.processors.TimeStamper(fmt="%H:%M:%S", utc=False)


def _escape_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape control characters: an event of another library may contain a client's text."""
    text = str(event["event"])
    event["event"] = _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)
    return event
