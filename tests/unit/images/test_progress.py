from typing import Any

import pytest

from kernelbridge.errors import ImageError
from kernelbridge.images.progress import BuildSummary, Counted, PullSummary


def feed(summary: BuildSummary, *streams: str) -> list[str]:
    return [line for stream in streams for line in summary.feed({"stream": stream})]


def test_steps_are_told_and_their_output_is_not() -> None:
    summary = BuildSummary("workspace")
    told = feed(summary, "Step 1/3 : FROM ba", "se\n", " ---> 0123\n", "Step 2/3 : RUN  apt-get\tupdate\n", "Hit:1\n")
    assert told == ["workspace 1/3: FROM base", "workspace 2/3: RUN apt-get update"]
    assert [(line.what, line.done, line.total) for line in told if isinstance(line, Counted)] == [
        ("workspace", 0, 3),
        ("workspace", 1, 3),
    ]


def test_a_long_step_shows_that_it_lives() -> None:
    summary = BuildSummary("workspace")
    assert feed(summary, "Collecting numpy>=2\n", "\x1b[33mCollecting pandas\x1b[0m\n") == [
        "  Collecting numpy>=2",
        "  Collecting pandas",
    ]


def test_lines_fit_a_screen() -> None:
    (line,) = feed(BuildSummary("workspace"), f"Step 1/1 : RUN {'x' * 500}\n")
    assert len(line) == 100
    assert line.endswith("…")


def test_the_image_is_known_at_the_end() -> None:
    summary = BuildSummary("workspace")
    assert summary.image_id is None
    summary.feed({"aux": {"ID": "sha256:1"}})
    assert summary.image_id == "sha256:1"


def test_a_failure_names_the_step_and_keeps_its_last_lines() -> None:
    summary = BuildSummary("workspace")
    feed(summary, "Step 1/2 : FROM base\n", "of another step\n", "Step 2/2 : RUN make\n")
    feed(summary, *(f"line {n}\n" for n in range(30)), "no newline")
    with pytest.raises(ImageError) as caught:
        summary.feed({"error": "returned a non-zero code: 2"})
    assert caught.value.message == "Building the workspace image failed at step 2 of 2, RUN make"
    assert caught.value.reason.startswith("returned a non-zero code: 2\nits last lines:\nline 11\n")
    assert caught.value.reason.endswith("line 29\nno newline")


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed", "--ca-bundle FILE"),
        ("Temporary failure resolving 'deb.debian.org'", "--network host"),
        ("OSError: No space left on device", "docker system prune"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "use PyPI or a mirror"),
        (
            "ERROR: Could not find a version that satisfies the requirement numpy==2.4.6 (from versions: 2.2.5, 2.2.6)",
            "--base with Python 3.11 to 3.14",
        ),
    ],
)
def test_a_known_cause_comes_with_advice(output: str, advice: str) -> None:
    summary = BuildSummary("workspace")
    feed(summary, "Step 1/1 : RUN pip\n", output + "\n")
    with pytest.raises(ImageError) as caught:
        summary.feed({"error": "failed"})
    assert advice in caught.value.reason.splitlines()[-1]


def test_a_pull_is_told_by_layers() -> None:
    summary = PullSummary("python:3.13")
    events: list[dict[str, Any]] = [
        {"status": "Pulling from library/python", "id": "3.13"},
        {"status": "Pulling fs layer", "id": "a"},
        {"status": "Already exists", "id": "b"},
        *({"status": "Downloading", "id": "a", "progressDetail": {"current": n}} for n in range(1000)),
        {"status": "Pull complete", "id": "a"},
        {"status": "Pull complete", "id": "a"},
        {"status": "Status: Downloaded newer image for python:3.13"},
    ]
    assert [line for event in events if (line := summary.feed(event))] == [
        "  1 of 2 layers of python:3.13",
        "  2 of 2 layers of python:3.13",
        "  Status: Downloaded newer image for python:3.13",
    ]


def test_a_failure_shows_no_lines_of_another_step() -> None:
    summary = BuildSummary("workspace")
    feed(summary, "Step 1/2 : FROM base\n", "of another step\n", "Step 2/2 : RUN make\n", "own\n")
    with pytest.raises(ImageError) as caught:
        summary.feed({"error": "failed"})
    assert caught.value.reason == "failed\nits last lines:\nown"
