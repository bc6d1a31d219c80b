"""What programs in a sandbox need to find their proxy and to trust what is behind it; pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

CERTIFICATES: Final = "certificates.pem"
"""The name of the file with the certificate authorities, in the sandbox's shared directory."""

_NO_PROXY: Final = "localhost,127.0.0.1,::1"
"""Without brackets and networks, which some clients do not understand."""
_CERTIFICATE_VARIABLES: Final = (
    "SSL_CERT_FILE",  # OpenSSL, so Python and Ruby; uv; Go
    "REQUESTS_CA_BUNDLE",
    "PIP_CERT",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
    "NODE_EXTRA_CA_CERTS",
    "npm_config_cafile",
)


def proxy_variables(port: int) -> Mapping[str, str]:
    """Return the environment variables for a proxy at a port of the loopback."""
    address = f"http://127.0.0.1:{port}"
    pairs = {"HTTP_PROXY": address, "HTTPS_PROXY": address, "NO_PROXY": _NO_PROXY}
    return {
        **pairs,
        **{name.lower(): value for name, value in pairs.items()},  # some programs know only these
        "NODE_USE_ENV_PROXY": "1",  # otherwise Node's own fetch does not look
        "npm_config_update_notifier": "false",
        "PIP_RETRIES": "1",  # more would delay a refusal
    }


@dataclass(frozen=True, slots=True)
class SandboxNetwork:
    """What the sandboxes of a server have in their environment for the network; nothing if they need nothing."""

    variables: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    certificates: bytes | None = None
    """All certificate authorities that programs should trust (PEM); None for the sandbox's own."""

    @property
    def files(self) -> Mapping[str, bytes]:
        """What must be in the sandbox's shared directory, by name."""
        return {} if self.certificates is None else {CERTIFICATES: self.certificates}

    def environment(self, directory: str) -> Mapping[str, str]:
        """Return all variables; `directory` is the sandbox's shared directory, as the sandbox sees it."""
        if self.certificates is None:
            return self.variables
        return {**self.variables, **dict.fromkeys(_CERTIFICATE_VARIABLES, f"{directory}/{CERTIFICATES}")}
