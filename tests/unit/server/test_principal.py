"""Whose a request is, and what of that is proven."""

from typing import Any, cast

import pytest
from aiohttp import web
from yarl import URL

from kernelbridge.identity.logins import Login
from kernelbridge.identity.principal import Identity, Principal
from kernelbridge.server.principal import ADMISSION, Anyone, Unproven, login_of, proven

ADA = Principal("ada")


class Request(dict[Any, Any]):
    """A request for the files of `eve`, admitted as the test says."""

    rel_url = URL("/?user_id=eve")


def admitted(admission: object) -> web.Request:
    return cast("web.Request", Request({ADMISSION: admission}))


def test_only_a_credential_proves_who_somebody_is() -> None:
    assert proven(admitted(Login(Identity(ADA)))) == ADA
    for admission in (Anyone(), Unproven(), None):
        assert proven(admitted(admission)) is None


def test_a_request_is_its_logins_or_without_authentication_that_of_the_named_user() -> None:
    assert login_of(admitted(Login(Identity(ADA)))).identity.principal == ADA
    assert login_of(admitted(Anyone())).identity.principal == Principal("eve")
    for admission in (Unproven(), None):
        with pytest.raises(web.HTTPUnauthorized):
            login_of(admitted(admission))
