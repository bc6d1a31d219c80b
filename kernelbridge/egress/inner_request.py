"""A request that a program sends where the server ends TLS: checked, and given the secrets of its host; pure.

h11 has read it, and writes it anew: what the host gets has one meaning, whatever the program has sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import h11

from kernelbridge.egress.hosts import BadHostError, split_authority, written
from kernelbridge.egress.http_request import stays
from kernelbridge.egress.policy import HTTPS, Admitted, Policy, Reason
from kernelbridge.egress.secrets import SecretHeader

Fields = list[tuple[bytes, bytes]]

_NOT_PASSED_ON: Final = frozenset({b"TRACE", b"TRACK", b"CONNECT"})
_BEFORE_KEEP_ALIVE: Final = (b"1.0", b"0.9")


class NoSecretError(Exception):
    """The file of a secret is gone."""


def with_secrets(
    request: h11.Request, policy: Policy, admitted: Admitted, secrets: Sequence[SecretHeader]
) -> h11.Request:
    """Return the request as the host gets it. Raises `Denied`, or `NoSecretError`."""
    check(request, policy, admitted)
    given = {_alike(header.name) for header in secrets}
    fields = [(b"Host", _host(admitted))]
    fields += [(name, value) for name, value in _passed_on(request) if _alike(name.decode()) not in given]
    for header in secrets:
        secret = header.source.value
        if secret is None:
            raise NoSecretError
        fields.append((header.name.encode(), secret.value))
    return h11.Request(method=request.method, target=request.target, headers=fields, http_version=b"1.1")


def _alike(name: str) -> str:
    """Return what is the same for names that some hosts (CGI, WSGI) take for one."""
    return name.lower().replace("_", "-")


def check(request: h11.Request, policy: Policy, admitted: Admitted) -> None:
    """Raise `Denied` for a request that does not get to the host."""
    names = [name for name, _ in request.headers]
    reason: Reason = "bad_request"
    if request.method in _NOT_PASSED_ON:
        reason, why = "method", f"{request.method.decode()} is not passed on to this host"
    elif b"content-length" in names and b"transfer-encoding" in names:
        why = "the request has both Content-Length and Transfer-Encoding"
    elif not request.target.startswith(b"/") and (request.method, request.target) != (b"OPTIONS", b"*"):
        why = "the target of the request is no path"
    elif not _is_for(request, admitted):
        reason, why = "host_header", "the request is for another host than the connection (Host)"
    elif b"upgrade" in names:
        reason, why = "upgrade", "the server adds a secret to requests for this host, so only HTTP is possible there"
    else:
        return
    raise policy.denied(reason, admitted.host, admitted.port, why)


def answer(response: h11.Response) -> h11.Response:
    """Return a host's answer as the program gets it."""
    fields = list(_passed_on(response))
    if b"close" in _named(response) or response.http_version in _BEFORE_KEEP_ALIVE:
        fields.append((b"Connection", b"close"))
    return h11.Response(status_code=response.status_code, headers=fields, reason=response.reason)


def interim(response: h11.InformationalResponse) -> h11.InformationalResponse:
    """Return an interim answer (100, 103) as the program gets it."""
    fields = list(_passed_on(response))
    return h11.InformationalResponse(status_code=response.status_code, headers=fields, reason=response.reason)


def _is_for(request: h11.Request, admitted: Admitted) -> bool:
    hosts = [value for name, value in request.headers if name == b"host"]
    try:
        return [split_authority(host.decode("latin-1"), HTTPS) for host in hosts] == [(admitted.host, admitted.port)]
    except BadHostError:
        return False


def _host(admitted: Admitted) -> bytes:
    return (admitted.host if admitted.port == HTTPS else written(admitted.host, admitted.port)).encode()


def _passed_on(message: h11.Request | h11.Response | h11.InformationalResponse) -> Iterable[tuple[bytes, bytes]]:
    """Return the fields that are not for one connection alone, as they were written."""
    hops = {name.decode("latin-1") for name in _named(message)}
    return ((name, value) for name, value in message.headers.raw_items() if not stays(name.lower().decode(), hops))


def _named(message: h11.Request | h11.Response | h11.InformationalResponse) -> set[bytes]:
    """Return what the field `Connection` names, in lower case."""
    values = [value for name, value in message.headers if name == b"connection"]
    return {part.strip().lower() for value in values for part in value.split(b",")}
