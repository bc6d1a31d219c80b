"""Errors travel between processes whole, and say what to do."""

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

import kernelbridge
from kernelbridge.client import errors, results
from kernelbridge.client.results import CommandResult, Result

RESULT = Result({"success": False, "output": "", "error": "ValueError: x", "traceback": "Traceback …"})
COMMAND = CommandResult({"output": "", "exitCode": 3})
ALL = (
    errors.ClientError("m", "r"),
    errors.ConnectionLost("m", "r"),
    errors.OutcomeUnknown("m", "r", request={"type": "execute_code"}),
    errors.LoginRefused("m", "r", status=401),
    errors.SessionLost("m", "r", session_id="s"),
    errors.RequestRefused("m", "r", code="not_found", retryable=True, request="read_file"),
    errors.WaitTimeout("m", "r"),
    errors.Closed("m", "r"),
    results.RunError("m", "r", result=RESULT),
    results.CodeError("m", "r", result=RESULT),
    results.CommandFailed("m", "r", result=COMMAND),
    results.RunTimeout("m", "r", result=RESULT),
    results.RunEnded("m", "r", result=RESULT),
)


def kinds(kind: type[errors.ClientError]) -> set[type[errors.ClientError]]:
    return {kind}.union(*(kinds(below) for below in kind.__subclasses__()))


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_an_error_is_pickled_with_all_fields(error: errors.ClientError) -> None:
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.__dict__, copy.code) == ("m: r", error.__dict__, error.code)


def test_all_kinds_are_tried_and_can_be_caught_by_name() -> None:
    assert {type(error) for error in ALL} == kinds(errors.ClientError)
    for kind in kinds(errors.ClientError):
        assert getattr(kernelbridge, kind.__name__) is kind
    assert len({kind.code for kind in kinds(errors.ClientError) - {errors.RequestRefused}}) == len(ALL) - 1


def fail() -> None:
    RESULT.check()


def test_an_error_comes_out_of_a_pool_of_processes() -> None:
    with (
        ProcessPoolExecutor(1, get_context("spawn")) as pool,
        pytest.raises(results.CodeError, match="ValueError: x") as caught,
    ):
        pool.submit(fail).result()
    assert caught.value.result == RESULT
