"""The addresses of a server."""

import pytest
from yarl import URL

from kernelbridge.client.connection import Target
from kernelbridge.client.errors import RequestRefused

TARGET = Target("ws://host:1/below", user_id="ada")


@pytest.mark.parametrize(
    ("session_id", "path"),
    [
        ("mine", "../../other/files/secret"),
        ("mine", "a/../../../other/files/secret"),
        ("mine", "./../x"),
        ("mine", "a/./b"),
        ("mine", ".."),
        ("mine", "."),
        ("mine", "./"),
        ("mine", ""),
        ("mine", "/etc/passwd"),
        ("..", "x"),
        (".", "x"),
    ],
)
def test_no_address_of_a_file_leads_out_of_its_session(session_id: str, path: str) -> None:
    with pytest.raises(RequestRefused, match="The file name cannot be used") as caught:
        TARGET.file(session_id, path)
    assert caught.value.code == "invalid_field"


@pytest.mark.parametrize(
    ("path", "written"),
    [("./a", "a"), (".//./a", "a"), ("a..b/.c", "a..b/.c"), ("..%2Fa", "..%252Fa"), ("a b/ä?#", "a%20b/%C3%A4%3F%23")],
)
def test_an_address_keeps_the_path(path: str, written: str) -> None:
    address = URL(TARGET.file("mine", path))
    assert address.raw_path == f"/below/api/sessions/mine/files/{written}"
    assert address.query_string == "user_id=ada"
