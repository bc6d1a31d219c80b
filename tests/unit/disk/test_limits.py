"""What follows from what a session uses of the disk."""

from kernelbridge.disk.limits import SLACK, SLACK_FILES, DiskLimits, DiskPolicy, Reaction, Use

MIB = 1 << 20
LIMITS = DiskLimits(100 * MIB, 1000)
BELOW, ABOVE = Use(50 * MIB, 10), Use(110 * MIB, 10)


def policy(*, enforced: bool = False, first: Use = BELOW) -> DiskPolicy:
    """A policy that has looked at a new sandbox once."""
    policy = DiskPolicy(enforced=enforced)
    policy.sandbox_began(LIMITS)
    policy.next(first)
    return policy


def grown(by: int = 2 * SLACK, files: int = 0) -> Use:
    return Use(ABOVE.size + by, ABOVE.files + files)


def test_a_session_below_its_limit_is_left_alone() -> None:
    assert [policy().next(use) for use in (BELOW, Use(100 * MIB, 1000), Use(0, 0))] == [Reaction.NONE] * 3


def test_a_write_may_fail_a_little_before_the_limit_is_reached() -> None:
    """A file system keeps some blocks for itself."""
    near = 100 * MIB - (100 * MIB >> 8)
    assert [LIMITS.reached(Use(size, 0)) for size in (near - 1, near)] == [False, True]
    assert [LIMITS.reached(Use(0, files)) for files in (999, 1000)] == [False, True]


def test_who_passes_the_limit_and_still_grows_is_interrupted_by_bytes_or_by_files() -> None:
    watched = policy()
    assert watched.next(ABOVE) is Reaction.LOOK_AGAIN
    assert watched.next(grown()) is Reaction.INTERRUPT
    watched = policy()
    assert watched.next(Use(0, 1001)) is Reaction.LOOK_AGAIN
    assert watched.next(Use(0, 1001 + 2 * SLACK_FILES)) is Reaction.INTERRUPT


def test_who_does_not_grow_any_more_is_told_once_and_not_interrupted() -> None:
    """The program that passed the limit has ended before the look; what runs now has written nothing."""
    watched = policy()
    assert [watched.next(ABOVE) for _ in range(4)] == [
        Reaction.LOOK_AGAIN,
        Reaction.TELL,
        Reaction.NONE,
        Reaction.NONE,
    ]
    assert [watched.next(use) for use in (BELOW, ABOVE, ABOVE)] == [
        Reaction.NONE,
        Reaction.LOOK_AGAIN,
        Reaction.TELL,
    ]


def test_who_still_grows_after_the_interrupt_is_ended() -> None:
    watched = policy()
    watched.next(ABOVE)
    assert watched.next(grown()) is Reaction.INTERRUPT
    assert watched.next(grown(4 * SLACK)) is Reaction.END


def test_who_stops_may_stay_above_the_limit_and_is_interrupted_again_when_it_grows() -> None:
    watched = policy()
    watched.next(ABOVE)
    assert watched.next(grown()) is Reaction.INTERRUPT
    assert watched.next(grown()) is Reaction.NONE
    assert watched.next(grown(4 * SLACK)) is Reaction.INTERRUPT
    assert watched.next(grown(4 * SLACK)) is Reaction.NONE


def test_a_little_growth_is_allowed_once_and_not_at_each_look() -> None:
    watched = policy()
    watched.next(ABOVE)
    assert watched.next(grown(SLACK, SLACK_FILES)) is Reaction.TELL
    assert watched.next(grown(SLACK + 1)) is Reaction.INTERRUPT


def test_who_deletes_gains_no_room_above_the_limit() -> None:
    watched = policy()
    watched.next(grown(10 * MIB))
    assert watched.next(ABOVE) is Reaction.TELL
    assert watched.next(grown()) is Reaction.INTERRUPT


def test_a_sandbox_that_starts_above_the_limit_is_only_told() -> None:
    watched = DiskPolicy(enforced=False)
    for _ in range(2):
        watched.sandbox_began(LIMITS)
        assert watched.next(ABOVE) is Reaction.TELL
        assert watched.next(ABOVE) is Reaction.NONE
    assert watched.next(grown()) is Reaction.INTERRUPT


def test_where_the_file_system_refuses_nobody_is_stopped_and_each_arrival_is_told() -> None:
    watched = policy(enforced=True)
    full = Use(100 * MIB, 10)
    assert [watched.next(use) for use in (full, full, BELOW, Use(0, 1000))] == [
        Reaction.TELL,
        Reaction.NONE,
        Reaction.NONE,
        Reaction.TELL,
    ]


def test_a_limit_of_zero_is_none() -> None:
    assert not DiskLimits()
    assert not DiskLimits().exceeded(Use(1 << 60, 1 << 40))
    assert not DiskLimits(files=5).exceeded(Use(1 << 60, 5))
    assert DiskLimits(files=5).exceeded(Use(0, 6))
    assert DiskLimits(size=5).describe(Use(1, 2000)) == "the session uses 1 bytes of 5 bytes of disk, and 2,000 files"
    figures = "the session uses 110.0 MiB of 100.0 MiB of disk, and 10 of 1,000 files"
    assert LIMITS.describe(ABOVE) == figures
