import pytest

from kernelbridge.errors import BadRequest, LimitExceeded
from kernelbridge.workspace.job_queue import WaitingBudget, run_timeout


def test_requests_are_counted_and_released() -> None:
    budget = WaitingBudget("cells", requests=2, characters=100)
    budget.take("a")
    budget.take("b")
    with pytest.raises(LimitExceeded, match="the limit is 2"):
        budget.take("c")
    budget.release("a")
    budget.take("c")


def test_characters_are_counted_but_one_request_may_be_of_any_size() -> None:
    budget = WaitingBudget("cells", requests=100, characters=10)
    budget.take("x" * 50)
    with pytest.raises(LimitExceeded, match="10 characters"):
        budget.take("y")
    budget.release("x" * 50)
    budget.take("y" * 6)
    budget.take("z" * 4)
    with pytest.raises(LimitExceeded):
        budget.take("!")


@pytest.mark.parametrize(
    ("wanted", "limit", "given"),
    [(None, None, None), (None, 5.0, 5.0), (3.0, None, 3.0), (3.0, 5.0, 3.0), (5.0, 5.0, 5.0)],
)
def test_a_run_may_choose_a_timeout_up_to_the_servers_limit(
    wanted: float | None, limit: float | None, given: float | None
) -> None:
    assert run_timeout(wanted, limit) == given


def test_a_longer_run_is_refused_with_the_limit() -> None:
    with pytest.raises(BadRequest, match="at most 5 seconds, the server's execution_timeout, and not 6") as caught:
        run_timeout(6, 5.0)
    assert (caught.value.code, caught.value.field) == ("invalid_field", "timeout")
