import pytest

from kernelbridge.errors import LimitExceeded
from kernelbridge.identity.principal import Principal
from kernelbridge.workspace.lifecycle.admission import SessionLimits
from kernelbridge.workspace.session_key import SessionKey


def test_limits_of_sessions_name_the_number_and_the_remedy() -> None:
    limits = SessionLimits(per_user=2, in_all=3, stored_per_user=100)
    there = {SessionKey(Principal("a"), "1"), SessionKey(Principal("a"), "2")}
    limits.check(SessionKey(Principal("a"), "1"), there, ())  # it is there
    limits.check(SessionKey(Principal("b"), "1"), there, ())
    with pytest.raises(LimitExceeded, match="for this user: the limit is 2; close one") as caught:
        limits.check(SessionKey(Principal("a"), "3"), there, ())
    assert caught.value.retryable
    with pytest.raises(LimitExceeded, match="on this server: the limit is 3; try again"):
        limits.check(SessionKey(Principal("b"), "2"), there | {SessionKey(Principal("b"), "1")}, ())


def test_a_user_may_have_so_many_sessions_with_files_and_open_all_of_them() -> None:
    limits = SessionLimits(per_user=10, in_all=10, stored_per_user=3)
    ada, bob = Principal("ada"), Principal("bob")
    stored = {"1", "2"}
    limits.check(SessionKey(ada, "3"), (), stored)
    with pytest.raises(LimitExceeded, match="have files: the limit is 3; list_sessions names them, and close_session"):
        limits.check(SessionKey(ada, "4"), {SessionKey(ada, "1"), SessionKey(ada, "3")}, stored)
    limits.check(SessionKey(ada, "2"), {SessionKey(ada, "3")}, stored)
    limits.check(SessionKey(ada, "3"), {SessionKey(ada, "3")}, stored)
    limits.check(SessionKey(ada, "4"), {SessionKey(bob, "3")}, stored)
