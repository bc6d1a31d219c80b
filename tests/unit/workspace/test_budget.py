import pytest

from kernelbridge.errors import LimitExceeded
from kernelbridge.workspace.budget import WaitingBudget


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
