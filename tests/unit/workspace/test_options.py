"""What a session may be opened with, and when that is fixed."""

from dataclasses import replace
from types import MappingProxyType

import pytest

from kernelbridge.egress.policy import Level
from kernelbridge.errors import BadRequest, SessionConflict
from kernelbridge.runtimes.contract import Limits
from kernelbridge.runtimes.facts import Facts, KernelSpec, PythonFacts
from kernelbridge.workspace.lifecycle.status import StatusReporter, session_status
from kernelbridge.workspace.options import Bounds, Choice, Opening, SessionOptions, checked, choose
from kernelbridge.workspace.states import KernelState, WorkspaceState

BOUNDS = Bounds(
    Limits(memory=1 << 30, cpus=2.0, pids=256), image="default:latest", images=frozenset({"other:1"}), disk=2 << 30
)
NO_IMAGES = Bounds(Limits(), image=None, image_setting="default:latest")


def facts(*kernels: str) -> Facts:
    python = PythonFacts("/usr/bin/python3", (3, 11), user_site=True, site_packages=(), base_executable="")
    specs = {name: KernelSpec(name, ("x",), f"language of {name}", name) for name in kernels}
    return Facts(1000, 100, MappingProxyType({}), python, MappingProxyType(specs), "/bin/sh")


def test_nothing_wished_is_the_default() -> None:
    choice = choose(checked(SessionOptions(), BOUNDS), BOUNDS)
    assert (choice.image, choice.kernel, choice.limits, dict(choice.env)) == (
        "default:latest",
        "python3",
        BOUNDS.limits,
        {},
    )


@pytest.mark.parametrize(
    ("image", "granted"), [("default", "default:latest"), ("default:latest", "default:latest"), ("other:1", "other:1")]
)
def test_an_image_is_granted_under_any_of_its_names(image: str, granted: str) -> None:
    assert checked(SessionOptions(image=image), BOUNDS).image == granted


@pytest.mark.parametrize("image", ["other", "other:2", "default:1", "registry/default", "default@sha256:0"])
def test_an_image_that_is_not_granted_is_refused_with_those_that_are(image: str) -> None:
    with pytest.raises(BadRequest, match="default:latest, other:1"):
        checked(SessionOptions(image=image), BOUNDS)


def test_where_there_are_no_images_only_the_servers_own_may_be_named() -> None:
    assert checked(SessionOptions(image="default"), NO_IMAGES).image is None
    with pytest.raises(BadRequest, match="not made of images"):
        checked(SessionOptions(image="other:1"), NO_IMAGES)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (SessionOptions(memory=(1 << 30) + 1), "limits.memory"),
        (SessionOptions(memory=1 << 20), "limits.memory"),
        (SessionOptions(cpus=2.1), "limits.cpus"),
        (SessionOptions(cpus=0.0), "limits.cpus"),
        (SessionOptions(cpus=float("nan")), "limits.cpus"),
        (SessionOptions(pids=257), "limits.pids"),
        (SessionOptions(pids=1), "limits.pids"),
        (SessionOptions(disk=(2 << 30) + 1), "limits.disk"),
        (SessionOptions(disk=1000), "limits.disk"),
        (SessionOptions(env={"HOME": "/"}), "env"),
        (SessionOptions(env={"LD_LIBRARY_PATH": "/"}), "env"),
        (SessionOptions(env={"KERNELBRIDGE_X": "1"}), "env"),
        (SessionOptions(env={"": "1"}), "env"),
        (SessionOptions(env={"1A": "1"}), "env"),
        (SessionOptions(env={"A=B": "1"}), "env"),
        (SessionOptions(env={"Ä": "1"}), "env"),
        (SessionOptions(env={"A\n": "1"}), "env"),
        (SessionOptions(env={"A": "x\0y"}), "env"),
    ],
)
def test_a_field_out_of_bounds_is_refused_by_name(options: SessionOptions, field: str) -> None:
    with pytest.raises(BadRequest) as caught:
        checked(options, BOUNDS)
    assert (caught.value.field, caught.value.code) == (field, "invalid_field")


def test_a_choice_can_be_made_until_the_sandbox_starts_and_then_only_repeated() -> None:
    opening = Opening(BOUNDS)
    opening.apply(SessionOptions(kernel="a"), starting=False)
    opening.apply(SessionOptions(kernel="b", pids=100), starting=False)
    assert (opening.choice.kernel, opening.choice.limits.pids) == ("b", 100)
    with pytest.raises(SessionConflict, match="kernel"):
        opening.apply(SessionOptions(kernel="a"), starting=True)
    opening.started(facts("b"))
    assert opening.language == "language of b"
    opening.apply(SessionOptions(), starting=False)
    opening.apply(SessionOptions(kernel="b", env={}, pids=100), starting=False)
    for options in (
        SessionOptions(pids=101),
        SessionOptions(image="other:1"),
        SessionOptions(env={"A": "1"}),
        SessionOptions(cpus=1.0),
        SessionOptions(memory=1 << 29),
    ):
        with pytest.raises(SessionConflict):
            opening.apply(options, starting=False)
    assert opening.choice.kernel == "b"


def test_a_session_may_have_less_disk_than_others_and_never_more() -> None:
    opening = Opening(BOUNDS)
    assert opening.disk == 2 << 30
    assert not opening.apply(SessionOptions(disk=2 << 30), starting=False)
    assert opening.apply(SessionOptions(disk=1 << 30), starting=False), "its directory has another limit"
    assert opening.disk == 1 << 30
    opening.started(facts())
    with pytest.raises(SessionConflict, match="another disk"):
        opening.apply(SessionOptions(disk=2 << 30), starting=False)
    opening.adopt(Choice(Limits(), disk=4 << 30), None)
    assert opening.disk == 2 << 30
    opening.adopt(Choice(Limits(), disk=1 << 20), None)
    assert opening.disk == 1 << 20
    unlimited = Opening(replace(BOUNDS, disk=0))
    unlimited.apply(checked(SessionOptions(disk=1 << 40), replace(BOUNDS, disk=0)), starting=False)
    assert unlimited.disk == 1 << 40


def test_another_servers_choice_is_reduced_to_this_ones_bounds() -> None:
    opening = Opening(BOUNDS)
    opening.adopt(Choice(Limits(memory=2 << 30, cpus=1.0, pids=512), "gone:1", "ir"), facts("ir"))
    assert opening.choice.image == "gone:1"  # as long as that server's sandbox lives
    assert opening.keep_to_bounds()
    assert (opening.choice.image, opening.choice.kernel, opening.facts) == ("default:latest", "ir", None)
    assert opening.choice.limits == Limits(memory=1 << 30, cpus=1.0, pids=256)
    opening.adopt(Choice(Limits(memory=1 << 29), "other:1"), facts())
    assert not opening.keep_to_bounds()
    assert (opening.choice.image, opening.choice.limits.memory) == ("other:1", 1 << 29)
    local = Opening(NO_IMAGES)
    assert not local.keep_to_bounds()


def test_limits_that_clients_cannot_choose_are_this_servers() -> None:
    chosen = Limits(memory=1 << 28, cpus=0.5, pids=64, tmp=5)
    opening = Opening(Bounds(Limits(tmp=7), "other"))
    opening.adopt(Choice(chosen, "image:1", "ir", {"A": "ß"}), None)
    assert opening.choice == Choice(Limits(memory=1 << 28, cpus=0.5, pids=64, tmp=7), "image:1", "ir", {"A": "ß"})
    opening.adopt(Choice(chosen), None)
    assert opening.choice.image == "other"
    local = Opening(Bounds(Limits(), None))
    local.adopt(Choice(chosen, "image:1"), None)
    assert local.choice.image is None


def test_a_kernel_that_is_not_there_is_refused_but_not_the_default_one() -> None:
    opening = Opening(BOUNDS)
    opening.check_kernel(facts())
    opening.apply(SessionOptions(kernel="ir"), starting=False)
    with pytest.raises(BadRequest, match="python3, xpython"):
        opening.check_kernel(facts("xpython", "python3"))
    opening.check_kernel(facts("ir"))


def test_every_state_has_a_status() -> None:
    for sandbox in WorkspaceState:
        for kernel in KernelState:
            assert session_status(sandbox, kernel).detail


def test_a_status_is_reported_when_it_changes() -> None:
    told: list[tuple[str, object]] = []
    teller = StatusReporter(lambda status, _detail, cause: told.append((status, cause or None)))
    sandbox, kernel = WorkspaceState, KernelState
    for states in [
        (sandbox.ABSENT, kernel.STARTING, False),
        (sandbox.STARTING, kernel.STARTING, False),
        (sandbox.ACTIVE, kernel.STARTING, False),
        (sandbox.ACTIVE, kernel.READY, False),
        (sandbox.ACTIVE, kernel.DEAD, False),
        (sandbox.ABSENT, kernel.DEAD, True),
        (sandbox.ABSENT, kernel.RESTARTING, False),
        (sandbox.STARTING, kernel.RESTARTING, False),
        (sandbox.ABSENT, kernel.RESTARTING, False),
        (sandbox.CLOSING, kernel.DEAD, False),
        (sandbox.CLOSING, kernel.DEAD, True),
        (sandbox.CLOSED, kernel.DEAD, False),
    ]:
        teller.changed(states[0], states[1], lost=states[2])
    assert [status for status, _ in told] == [
        "starting",
        "ready",
        "ready",
        "closed",
        "starting",
        "closed",
        "closing",
        "closed",
    ]


def test_a_session_may_live_on_as_long_as_the_operator_allows() -> None:
    bounds = Bounds(Limits(), image=None, linger=15.0, max_linger=60.0)
    assert checked(SessionOptions(linger=60.0, keep_while_running=True), bounds).linger == 60.0
    with pytest.raises(BadRequest, match="expected at most 60 seconds, the server's limit"):
        checked(SessionOptions(linger=60.5), bounds)
    # Whoever asks for what everybody has is not refused.
    checked(SessionOptions(linger=120.0), Bounds(Limits(), image=None, linger=120.0, max_linger=60.0))


def test_how_long_a_session_lives_on_can_be_changed_while_it_is_open() -> None:
    opening = Opening(Bounds(Limits(), image=None, linger=15.0, max_linger=60.0))
    assert (opening.linger, opening.asked_linger, opening.keep_while_running) == (15.0, None, False)
    opening.apply(SessionOptions(linger=30.0, keep_while_running=True), starting=True)
    opening.apply(SessionOptions(), starting=True)
    assert (opening.linger, opening.keep_while_running) == (30.0, True)
    opening.apply(SessionOptions(linger=0.0, keep_while_running=False), starting=True)
    assert (opening.linger, opening.keep_while_running) == (0.0, False)
    # Granted by an earlier server that allowed more.
    opening.set_linger(3600.0, keep_while_running=None)
    assert (opening.linger, opening.asked_linger) == (60.0, 3600.0)


def test_a_session_may_have_less_of_the_network_and_not_more() -> None:
    bounds = Bounds(Limits(), image=None, egress="packages")
    checked(SessionOptions(egress="none"), bounds)
    with pytest.raises(BadRequest, match="at most 'packages'"):
        checked(SessionOptions(egress="open"), bounds)
    with pytest.raises(BadRequest, match="the network of its machine"):
        checked(SessionOptions(egress="none"), NO_IMAGES)


def test_the_network_of_a_session_is_fixed_and_the_servers_own_may_be_named() -> None:
    opening = Opening(Bounds(Limits(), image=None, egress="packages"))
    assert opening.egress == "packages"
    opening.apply(SessionOptions(egress="packages"), starting=False)
    assert opening.choice.egress is None
    opening.apply(SessionOptions(egress="packages"), starting=True)
    with pytest.raises(SessionConflict):
        opening.apply(SessionOptions(egress="none"), starting=True)
    chosen = Opening(Bounds(Limits(), image=None, egress="open"))
    chosen.apply(SessionOptions(egress="none"), starting=False)
    assert (chosen.egress, chosen.choice.egress) == ("none", "none")
    with pytest.raises(SessionConflict):
        chosen.apply(SessionOptions(egress="open"), starting=True)


@pytest.mark.parametrize(("chosen", "has"), [("open", "packages"), ("packages", "packages"), ("none", "none")])
def test_the_network_of_an_earlier_server_s_session_follows_this_server(chosen: Level, has: Level) -> None:
    opening = Opening(Bounds(Limits(), image=None, egress="packages"))
    opening.adopt(Choice(Limits(), egress=chosen), None)
    assert opening.egress == has
