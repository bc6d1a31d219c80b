import io
import re
import tarfile
from pathlib import Path

import pytest

from kernelbridge.errors import ImageError
from kernelbridge.images.base import PUBLIC_BASE
from kernelbridge.images.build import KNOWN
from kernelbridge.images.context import CA_BUNDLE, images_directory, server_context, workspace_context

CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----"
CHECKOUT = Path(__file__).parents[3]


def members(archive: bytes) -> dict[str, tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {member.name: member for member in tar.getmembers()}


def read(archive: bytes, name: str) -> str:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        file = tar.extractfile(name)
        assert file is not None
        return file.read().decode()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "company.pem"
    path.write_text(CERTIFICATE)
    return path


def test_a_bundle_lies_beside_the_dockerfile_only_when_given(bundle: Path) -> None:
    assert CA_BUNDLE not in members(workspace_context().archive)
    archive = workspace_context(bundle).archive
    assert read(archive, CA_BUNDLE) == CERTIFICATE + "\n"
    assert "slim.txt" in members(archive)


def test_a_bundle_left_in_the_directory_is_not_sent(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / CA_BUNDLE).write_text("left over")
    assert set(members(workspace_context(directory=tmp_path).archive)) == {"Dockerfile"}


def test_the_archive_depends_on_content_alone(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM scratch\n")
    (tmp_path / "run.sh").write_text("true\n")
    (tmp_path / "Dockerfile").chmod(0o600)
    (tmp_path / "run.sh").chmod(0o775)
    found = members(workspace_context(directory=tmp_path).archive)
    assert {name: oct(member.mode) for name, member in found.items()} == {"Dockerfile": "0o644", "run.sh": "0o755"}
    assert {(member.uid, member.gid, member.uname) for member in found.values()} == {(0, 0, "root")}


def test_the_server_context_is_what_the_package_is_built_from(bundle: Path) -> None:
    context = server_context(bundle)
    found = set(members(context.archive))
    assert context.dockerfile in found
    assert {"pyproject.toml", "README.md", "LICENSE", "kernelbridge/__init__.py", CA_BUNDLE} <= found
    assert "images/workspace/Dockerfile" in found
    assert {name.split("/")[0] for name in found} == {
        "pyproject.toml",
        "README.md",
        "LICENSE",
        "kernelbridge",
        "images",
        CA_BUNDLE,
    }
    assert not any("__pycache__" in name for name in found)


def test_the_server_image_needs_a_checkout(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"source checkout.*clone the repository"):
        server_context(checkout=tmp_path)


@pytest.mark.parametrize("content", ["", "not a certificate\n"])
def test_a_bundle_without_a_certificate_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bundle.pem"
    path.write_text(content)
    with pytest.raises(ImageError, match=r"has no certificate.*PEM"):
        workspace_context(path)


def test_a_bundle_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.pem cannot be read: No such file"):
        workspace_context(tmp_path / "nowhere.pem")


@pytest.mark.parametrize("path", ["workspace/Dockerfile", "server/Dockerfile"])
def test_the_dockerfiles_stand_on_the_public_base_by_default(path: str) -> None:
    assert f"ARG BASE={PUBLIC_BASE}\n" in (images_directory() / path).read_text(encoding="utf-8")


def test_every_image_of_workspaces_is_a_stage() -> None:
    """Only the small one is built for tests."""
    text = (images_directory() / "workspace" / "Dockerfile").read_text(encoding="utf-8")
    stages = re.findall(r"^FROM (\S+) AS (\S+)$", text, re.MULTILINE)
    assert stages == [("${BASE}", "slim"), ("slim", "workspace"), ("workspace", "datascience-r")]
    assert [image.target for image in KNOWN.values() if image.target] == [stage for _, stage in stages]


@pytest.mark.parametrize("path", ["workspace/Dockerfile", "server/Dockerfile"])
def test_pip_installs_only_what_has_a_hash(path: str) -> None:
    text = re.sub(r"^#.*", "", (images_directory() / path).read_text(encoding="utf-8"), flags=re.MULTILINE)
    commands = re.findall(r"\bpip install [^;&\n]*", text.replace("\\\n", " "))
    assert commands
    for command in commands:
        assert "--require-hashes" in command or "--no-index" in command, command


def test_compose_stands_on_the_public_base_by_default() -> None:
    assert f"${{BASE_IMAGE:-{PUBLIC_BASE}}}" in (CHECKOUT / "docker-compose.yml").read_text(encoding="utf-8")
