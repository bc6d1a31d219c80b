import pytest

from kernelbridge.errors import LimitExceeded
from kernelbridge.identity.principal import Principal
from kernelbridge.workspace.lifecycle.admission import SessionLimits
from kernelbridge.workspace.session_key import SessionKey


def test_limits_of_sessions_name_the_number_and_the_remedy() -> None:
    limits = SessionLimits(per_user=2, in_all=3)
    there = {SessionKey(Principal("a"), "1"), SessionKey(Principal("a"), "2")}
    limits.check(SessionKey(Principal("a"), "1"), there)  # it is there
    limits.check(SessionKey(Principal("b"), "1"), there)
    with pytest.raises(LimitExceeded, match="for this user: the limit is 2; close one") as caught:
        limits.check(SessionKey(Principal("a"), "3"), there)
    assert caught.value.retryable
    with pytest.raises(LimitExceeded, match="on this server: the limit is 3; try again"):
        limits.check(SessionKey(Principal("b"), "2"), there | {SessionKey(Principal("b"), "1")})
