import pytest

from kernelbridge.errors import LimitExceeded
from kernelbridge.workspace.lifecycle.admission import SessionLimits
from kernelbridge.workspace.session_key import SessionKey


def test_limits_of_sessions_name_the_number_and_the_remedy() -> None:
    limits = SessionLimits(per_user=2, in_all=3)
    there = {SessionKey("a", "1"), SessionKey("a", "2")}
    limits.check(SessionKey("a", "1"), there)  # it is there
    limits.check(SessionKey("b", "1"), there)
    with pytest.raises(LimitExceeded, match="for this user: the limit is 2; close one") as caught:
        limits.check(SessionKey("a", "3"), there)
    assert caught.value.retryable
    with pytest.raises(LimitExceeded, match="on this server: the limit is 3; try again"):
        limits.check(SessionKey("b", "2"), there | {SessionKey("b", "1")})
