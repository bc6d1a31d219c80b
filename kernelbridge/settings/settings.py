"""The settings: one frozen object, made from flags, environment variables and the settings file.

Each setting is declared once, as a field of `Settings` with an `Option` in its annotation. The flags, the
`KERNELBRIDGE_…` variables, the keys of the TOML file, the checks for unknown names, the help and
`docs/reference/configuration.md` are made from these fields. A flag wins over a variable, a variable over the file, the
file over the default. Every value is checked, also one that another overrides.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from ipaddress import IPv4Network, IPv6Network, ip_address
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Final, Literal, get_type_hints

from kernelbridge.egress.hosts import Network
from kernelbridge.egress.policy import LEVELS, Level, Rule
from kernelbridge.egress.secrets import SecretRule
from kernelbridge.errors import ConfigError
from kernelbridge.settings import kinds
from kernelbridge.settings.environment import default_ca_bundle, default_data_dir, docker_host
from kernelbridge.settings.kinds import Kind, Option
from kernelbridge.settings.quantities import format_size
from kernelbridge.settings.sources import Given, from_environment, from_file, from_flags

LISTENING = "Listening"
IDENTITY = "Authentication"
SANDBOXES = "Sandboxes"
EGRESS = "Network of the sandboxes"
WORKSPACE = "Limits of one workspace"
SERVER = "Limits of the server"
IMAGES = "Building images"
PLACES = "Files and logs"

JWT_ALGORITHMS: Final = (
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA", "HS256"),
)
IMAGE_NAME: Final = kinds.text(
    "IMAGE", "an image name such as kernelbridge-workspace:latest", r"[A-Za-z0-9][A-Za-z0-9._:/@-]*"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """All settings. Sizes are bytes, durations are seconds, paths are absolute."""

    host: Annotated[
        str,
        Option(
            kinds.text("ADDRESS", "an address"),
            LISTENING,
            "Address to listen on. Without authentication, a loopback address.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, Option(kinds.integer("PORT", 0, 65535), LISTENING, "Port to listen on; 0 takes a free one.")
    ] = 8001
    listen: Annotated[
        Path | None,
        Option(
            kinds.unix_socket(),
            LISTENING,
            "UNIX socket to listen on, instead of host and port. Its mode is 0660.",
            default_text="none",
        ),
    ] = None
    tls_cert: Annotated[
        Path | None,
        Option(
            kinds.path("FILE", "a PEM file"),
            LISTENING,
            "Certificate of this server, with the chain. Clients then connect with wss:// and https://. A renewed one "
            "is used within seconds.",
            default_text="no TLS",
        ),
    ] = None
    tls_key: Annotated[
        Path | None,
        Option(
            kinds.path("FILE", "a PEM file"),
            LISTENING,
            "Private key of that certificate.",
            default_text="in the file of the certificate",
        ),
    ] = None
    allow_origin: Annotated[
        tuple[str, ...],
        Option(
            kinds.origins(),
            LISTENING,
            "Web origin whose pages may connect, besides pages of this machine. Repeatable.",
            default_text="none",
        ),
    ] = ()
    metrics_listen: Annotated[
        tuple[str, int] | Path | None,
        Option(
            kinds.listener(),
            LISTENING,
            "Another address, on which GET /metrics answers Prometheus. It is never part of the clients' address.",
            default_text="off",
        ),
    ] = None
    max_message: Annotated[
        int,
        Option(
            kinds.size(1 << 10), LISTENING, "Largest frame from a client; a larger one closes the connection (1009)."
        ),
    ] = 16 << 20

    auth: Annotated[
        Literal["none", "token", "proxy", "jwt"],
        Option(
            kinds.choice("none", "token", "proxy", "jwt"),
            IDENTITY,
            "How clients prove who they are: not at all (this machine only), with tokens of a file, by a proxy that "
            "names the user in a header, or with JSON Web Tokens.",
        ),
    ] = "none"
    token_file: Annotated[
        Path | None,
        Option(
            kinds.path("FILE", "a file"),
            IDENTITY,
            "File with the tokens (token). `kernelbridge token new` adds one. Only its owner may read it; a change "
            "takes effect within seconds.",
            default_text="none",
        ),
    ] = None
    user_header: Annotated[
        str,
        Option(
            kinds.text("NAME", "the name of a header, such as X-Forwarded-User", r"[A-Za-z0-9-]{1,64}"),
            IDENTITY,
            "Header in which the proxy names the user (proxy).",
        ),
    ] = "X-Forwarded-User"
    trusted_proxy: Annotated[
        tuple[IPv4Network | IPv6Network | Literal["unix"], ...],
        Option(
            kinds.trusted_peers(),
            IDENTITY,
            "Address or network of a proxy that is believed: who the user is (proxy), and in X-Forwarded-For where a "
            "request comes from. Or unix, for the peers of --listen unix:PATH. Repeatable.",
            default_text="none",
        ),
    ] = ()
    admin: Annotated[
        tuple[str, ...],
        Option(
            replace(
                kinds.text("NAME", "the name of a user without commas, of at most 256 characters", r"[^,]{1,256}"),
                many=True,
            ),
            IDENTITY,
            "User who may see and end the sessions of all users (token, proxy, jwt). In a variable, commas separate "
            "names: a user whose name has one cannot be named. Repeatable.",
            default_text="none",
        ),
    ] = ()
    jwt_algorithm: Annotated[
        str,
        Option(
            kinds.choice(*JWT_ALGORITHMS),
            IDENTITY,
            "The only algorithm with which tokens may be signed (jwt).",
        ),
    ] = "RS256"
    jwt_key: Annotated[
        Path | None,
        Option(
            kinds.path("FILE", "a PEM file"),
            IDENTITY,
            "Public key of the issuer in PEM; for HS256 a secret of at least 32 bytes, in a file that only its owner "
            "may read (jwt).",
            default_text="none",
        ),
    ] = None
    jwt_jwks_file: Annotated[
        Path | None,
        Option(
            kinds.path("FILE", "a JSON file"),
            IDENTITY,
            "JSON Web Key Set with the public keys of the issuer, instead of jwt_key (jwt). A change takes effect "
            "within seconds.",
            default_text="none",
        ),
    ] = None
    jwt_issuer: Annotated[
        str | None,
        Option(
            kinds.text("TEXT", "the issuer's name, such as https://login.example.org"),
            IDENTITY,
            "What the claim iss must be (jwt). It is a part of the user's identity.",
            default_text="none",
        ),
    ] = None
    jwt_audience: Annotated[
        str | None,
        Option(
            kinds.text("TEXT", "the name of this service"),
            IDENTITY,
            "What the claim aud must be, or have in its list (jwt).",
            default_text="none",
        ),
    ] = None

    runtime: Annotated[
        Literal["auto", "docker", "local"],
        Option(
            kinds.choice("auto", "docker", "local"),
            SANDBOXES,
            "What creates sandboxes: docker, local (bubblewrap), or auto, which is docker if its engine answers, else "
            "local. auto is never local while sessions of an earlier server are in containers.",
        ),
    ] = "auto"
    isolation: Annotated[
        bool,
        Option(
            kinds.switch(),
            SANDBOXES,
            "Isolate workspaces in the local runtime. Without isolation (only with --runtime local), code has all your "
            "rights.",
        ),
    ] = True
    image: Annotated[str, Option(IMAGE_NAME, SANDBOXES, "Image of the workspaces (docker).")] = (
        "kernelbridge-workspace:latest"
    )
    seccomp_profile: Annotated[
        Path | None,
        Option(
            kinds.path("FILE", "a JSON file"),
            SANDBOXES,
            "Seccomp profile of the workspaces (docker), for programs that need more system calls.",
            default_text="kernelbridge's own",
        ),
    ] = None
    oci_runtime: Annotated[
        str | None,
        Option(
            kinds.text("NAME", "the name of a runtime of the engine, such as runsc", r"[A-Za-z0-9][A-Za-z0-9._-]*"),
            SANDBOXES,
            "The engine's runtime for the workspaces (only with --runtime docker), such as crun, or runsc (gVisor).",
            default_text="the engine's default one",
        ),
    ] = None
    gpus: Annotated[
        str | None,
        Option(
            kinds.text(
                "GPUS",
                "all, a number, or device= with indexes or ids of GPUs, such as device=0,1",
                r"all|[1-9][0-9]{0,3}|device=[A-Za-z0-9][A-Za-z0-9.-]*(,[A-Za-z0-9][A-Za-z0-9.-]*)*",
            ),
            SANDBOXES,
            "GPUs that each workspace gets (only with --runtime docker), as the engine's own --gpus takes them: all, a "
            "number, or device=ID,ID.",
            default_text="none",
        ),
    ] = None
    allow_image: Annotated[
        tuple[str, ...],
        Option(
            replace(IMAGE_NAME, many=True),
            SANDBOXES,
            "Another image that open_session may choose (docker). Repeatable.",
            default_text="none",
        ),
    ] = ()
    uid_range: Annotated[
        tuple[int, int] | None,
        Option(
            kinds.uid_range(),
            SANDBOXES,
            "User ids for sessions, one for each, if the server is root; off: the user of the image.",
        ),
    ] = (2_000_000, 2_065_535)
    start_timeout: Annotated[float, Option(kinds.duration(1), SANDBOXES, "How long a kernel may take to start.")] = 60.0
    linger: Annotated[
        float,
        Option(
            kinds.duration(), SANDBOXES, "How long a session stays open after its last connection; 0 closes it at once."
        ),
    ] = 15.0
    max_linger: Annotated[
        float,
        Option(kinds.duration(), SANDBOXES, "Longest linger that open_session may ask for; never less than linger."),
    ] = 3600.0
    idle_timeout: Annotated[
        float | None,
        Option(
            kinds.duration(unlimited=True),
            SANDBOXES,
            "Pause the sandbox of a session that has been unused for this long; the next message resumes it. 0: never.",
        ),
    ] = 600.0

    stop_timeout: Annotated[
        float,
        Option(
            kinds.duration(),
            SANDBOXES,
            "How long a server that stops waits for running cells and commands, before it ends them.",
        ),
    ] = 10.0
    keep_sandboxes: Annotated[
        bool,
        Option(
            kinds.switch(),
            SANDBOXES,
            "When the server stops, leave its sandboxes and what runs in them to the next server.",
        ),
    ] = False

    egress: Annotated[
        Level,
        Option(
            kinds.choice(*LEVELS),
            EGRESS,
            "Hosts that programs may reach, through the server's proxy: none; packages, which is PyPI and the indexes "
            "of the server's own pip; or open, which is every public host at the ports 443 and 80.",
        ),
    ] = "packages"
    egress_allow: Annotated[
        tuple[Rule, ...],
        Option(
            kinds.egress_rule(),
            EGRESS,
            "Another host that programs may reach, whatever --egress is, with HTTPS at port 443 or the one given; "
            "*.DOMAIN for all names below a domain; http://HOST for HTTP without TLS. Repeatable.",
            default_text="none",
        ),
    ] = ()
    egress_allow_net: Annotated[
        tuple[Network, ...],
        Option(
            kinds.network(),
            EGRESS,
            "Network whose addresses an allowed host may have although it is not public. Repeatable.",
            default_text="none",
        ),
    ] = ()
    egress_proxy: Annotated[
        tuple[str, int] | None,
        Option(
            kinds.upstream_proxy(),
            EGRESS,
            "Proxy through which the server reaches all hosts. It resolves their names, so where they lead is not "
            "checked; not with --egress open.",
            default_text="none",
        ),
    ] = None
    egress_secret: Annotated[
        tuple[SecretRule, ...],
        Option(
            kinds.egress_secret(),
            EGRESS,
            "Header field that the server adds to requests for a host, which it also allows. FILE has the value, for "
            "the server's user only; no sandbox gets it. HOST is a name, or NAME:PORT. Repeatable.",
            default_text="none",
        ),
    ] = ()
    egress_rate: Annotated[
        int | None,
        Option(
            kinds.size(1 << 10, unlimited=True),
            EGRESS,
            "Bytes a second that the programs of one session may send and receive; 0: no limit.",
        ),
    ] = 64 << 20
    egress_bytes: Annotated[
        int | None,
        Option(
            kinds.size(1 << 20, unlimited=True),
            EGRESS,
            "Bytes that they may send and receive until the session is closed; 0: no limit.",
        ),
    ] = 20 << 30

    memory: Annotated[int, Option(kinds.size(64 << 20), WORKSPACE, "Memory; no swap is added to it.")] = 1 << 30
    cpus: Annotated[float, Option(kinds.decimal("NUMBER", 0.01), WORKSPACE, "Processors; may be a fraction.")] = 1.0
    pids: Annotated[int, Option(kinds.integer("COUNT", 32), WORKSPACE, "Processes and threads.")] = 256
    ptys: Annotated[
        int, Option(kinds.integer("COUNT", 8), WORKSPACE, "Terminals (PTYs), including those of open_terminal.")
    ] = 24
    disk: Annotated[
        int,
        Option(kinds.size(0), WORKSPACE, "Disk space for the files of a session, hidden ones included; 0: no limit."),
    ] = 2 << 30
    disk_files: Annotated[
        int,
        Option(kinds.integer("COUNT", 0), WORKSPACE, "Files and directories of a session; 0: no limit."),
    ] = 200_000
    execution_timeout: Annotated[
        float | None,
        Option(
            kinds.duration(unlimited=True),
            WORKSPACE,
            "Longest run of a cell or terminal command; 0: no limit.",
            default_text="no limit",
        ),
    ] = None
    input_timeout: Annotated[
        float | None,
        Option(
            kinds.duration(unlimited=True),
            WORKSPACE,
            "How long a cell may wait for an answer to input(); 0: no limit.",
        ),
    ] = 300.0
    max_output: Annotated[
        int,
        Option(
            kinds.size(1 << 10),
            WORKSPACE,
            "Largest output that a result has in full; of a larger one it has a quarter of this, from head and tail.",
        ),
    ] = 10 << 20
    max_spill: Annotated[
        int,
        Option(
            kinds.size(0),
            WORKSPACE,
            "Largest workspace file with the whole output of a run that exceeds max_output; 0: no file.",
        ),
    ] = 256 << 20
    journal_size: Annotated[
        int,
        Option(
            kinds.size(1 << 10),
            WORKSPACE,
            "How much of a session's latest events is kept for clients that resume it.",
        ),
    ] = 4 << 20
    max_upload: Annotated[
        int,
        Option(kinds.size(1 << 10), WORKSPACE, "Largest file that may be uploaded by HTTP, or appended to."),
    ] = 4 << 30
    queue_limit: Annotated[
        int, Option(kinds.integer("COUNT", 1), WORKSPACE, "Requests of one kind that may wait in a session.")
    ] = 1000

    max_sessions_per_user: Annotated[
        int, Option(kinds.integer("COUNT", 1), SERVER, "Sessions that one user may have open.")
    ] = 20
    max_sessions: Annotated[
        int, Option(kinds.integer("COUNT", 1), SERVER, "Sessions that all users together may have open.")
    ] = 100
    max_stored_sessions_per_user: Annotated[
        int,
        Option(
            kinds.integer("COUNT", 1),
            SERVER,
            "Sessions of one user that may have files, open or not; another one is refused until one is deleted.",
        ),
    ] = 10_000
    max_connections_per_user: Annotated[
        int,
        Option(
            kinds.integer("COUNT", 1),
            SERVER,
            "WebSockets that one user may have open; another one is closed with code 1013 and a message that says why.",
        ),
    ] = 250
    max_buffered: Annotated[
        int,
        Option(
            kinds.size(1 << 20),
            SERVER,
            "Unfinished messages and unread answers of all clients together. Above that, the connection that holds "
            "most is closed with code 1013 and a message that says why. At least max_message.",
        ),
    ] = 256 << 20
    message_timeout: Annotated[
        float,
        Option(
            kinds.duration(0.1),
            SERVER,
            "How long a client may take to send one message; then its connection is closed with the reason (1008).",
        ),
    ] = 60.0
    request_rate: Annotated[
        int,
        Option(
            kinds.integer("COUNT", 0),
            SERVER,
            "Requests of one user in each second, in the long run; more are read later. One connection has half of it. "
            "0: no limit.",
        ),
    ] = 4000
    byte_rate: Annotated[
        int,
        Option(
            kinds.size(0),
            SERVER,
            "Bytes that one user sends in each second, in the long run; more are read later. One connection has half "
            "of it. 0: no limit.",
        ),
    ] = 1 << 30
    start_rate: Annotated[
        float,
        Option(
            kinds.decimal("NUMBER", 0),
            SERVER,
            "Sandboxes that one user starts in each second, in the long run; 0: no limit.",
        ),
    ] = 5.0
    max_starts: Annotated[
        int,
        Option(
            kinds.integer("COUNT", 1),
            SERVER,
            "Sandboxes that may start at the same time; others wait, and users take turns.",
        ),
    ] = 4

    images_base: Annotated[
        str,
        Option(
            IMAGE_NAME,
            IMAGES,
            "Image to build on: a name; debootstrap, which makes one from Debian's packages; or auto, which is the "
            "public Python image, or debootstrap if that cannot be pulled.",
        ),
    ] = "auto"
    images_network: Annotated[
        str | None,
        Option(
            kinds.text("NETWORK", "a network of the engine, such as host", r"[A-Za-z0-9][A-Za-z0-9_.:-]*"),
            IMAGES,
            "The engine's network for build steps, such as host.",
            default_text="the engine's",
        ),
    ] = None
    images_mirror: Annotated[
        str,
        Option(
            kinds.text("URL", "a URL such as http://deb.debian.org/debian", r"(https?|file)://\S+"),
            IMAGES,
            "Debian archive for debootstrap.",
        ),
    ] = "http://deb.debian.org/debian"
    ca_bundle: Annotated[
        Path | None,
        Option(
            kinds.path("FILE", "a PEM file"),
            IMAGES,
            "PEM file of certificate authorities to trust during a build, and in the sandboxes besides the usual ones.",
            default_text="the file that SSL_CERT_FILE names, if any",
        ),
    ] = None

    data_dir: Annotated[
        Path,
        Option(
            kinds.path("DIRECTORY", "a directory"),
            PLACES,
            "Directory for the files of the workspaces and the state of the server.",
            default_text="/var/lib/kernelbridge as root, else ~/.local/share/kernelbridge",
        ),
    ]
    retain: Annotated[
        float | None,
        Option(
            kinds.duration(unlimited=True),
            PLACES,
            "Delete the files of sessions that have been unused for this long; 0: never.",
        ),
    ] = None
    config: Annotated[
        Path | None,
        Option(
            kinds.path("FILE", "a TOML file"),
            PLACES,
            "TOML file with settings.",
            default_text="none",
            in_file=False,
        ),
    ] = None
    audit_log: Annotated[
        Path | None,
        Option(
            kinds.path("FILE", "a file"),
            PLACES,
            "File to which a line of JSON is added for each connection, session, cell, command, use of a file and "
            "refusal.",
            default_text="off",
        ),
    ] = None
    audit_code: Annotated[
        bool,
        Option(
            kinds.switch(),
            PLACES,
            "Write the code of cells and commands to the audit log, and not only its hash and size.",
        ),
    ] = False
    log_format: Annotated[
        Literal["console", "json"],
        Option(kinds.choice("console", "json"), PLACES, "Format of the log on standard error."),
    ] = "console"
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"],
        Option(kinds.choice("debug", "info", "warning", "error"), PLACES, "Lowest level that is logged."),
    ] = "info"

    def own_files(self) -> list[Path]:
        """Return the server's own files and directories, which no sandbox may see."""
        # The keys of other algorithms are public.
        keys = (self.jwt_key, self.jwt_jwks_file) if self.jwt_algorithm.startswith("HS") else ()
        # Whoever sees a socket can connect to it, also without a network.
        sockets = (path for path in (self.listen, self.metrics_listen) if isinstance(path, Path))
        named = (self.data_dir, self.token_file, self.tls_key or self.tls_cert, self.audit_log, *keys, *sockets)
        return [*(path for path in named if path is not None), *(secret.path for secret in self.egress_secret)]

    @property
    def egress_hosts(self) -> tuple[Rule, ...]:
        """The hosts that the operator has named: allowed ones, and those that have secrets."""
        return (*self.egress_allow, *(secret.allows for secret in self.egress_secret))


def _options() -> Mapping[str, Option]:
    hints = get_type_hints(Settings, include_extras=True)
    return MappingProxyType({field.name: hints[field.name].__metadata__[0] for field in fields(Settings)})


OPTIONS: Final = _options()
"""All settings by name, in the order of declaration."""


def default_text(name: str) -> str:
    """Return the default of a setting as help and documentation show it."""
    option = OPTIONS[name]
    if option.default_text is not None:
        return option.default_text
    return option.kind.write(next(field.default for field in fields(Settings) if field.name == name))


def resolve(
    flags: Mapping[str, object] = MappingProxyType({}),
    environ: Mapping[str, str] | None = None,
    *,
    cwd: Path | None = None,
    spelling: Mapping[str, str] = MappingProxyType({}),
) -> Settings:
    """Return the settings from flags, environment, settings file and defaults. Raises `ConfigError`.

    `flags` maps names of settings to a text, a tuple of texts or a bool; `None` and `()` mean that the flag is absent.
    `environ` and `cwd` are the process's own by default. `spelling` has the flags that are not named after their
    setting.
    """
    environ = os.environ if environ is None else environ
    cwd = Path.cwd() if cwd is None else cwd
    layers = [from_flags(flags, cwd, spelling), from_environment(environ, OPTIONS, cwd)]
    file = next((layer["config"] for layer in layers if "config" in layer), None)
    if file is not None:
        path = _read("config", file)
        layers.append(from_file(path, [name for name, option in OPTIONS.items() if option.in_file]))
    values: dict[str, Any] = {"ca_bundle": default_ca_bundle(environ)}
    if not any("data_dir" in layer for layer in layers):
        values["data_dir"] = default_data_dir(environ)
    sources: dict[str, str] = {}
    for layer in reversed(layers):
        for name, given in layer.items():
            values[name] = _read(name, given)
            sources[name] = given.source
    settings = Settings(**values)
    _check(settings, sources)
    if settings.runtime != "local":
        docker_host(environ)
    return settings


def is_loopback(host: str) -> bool:
    """Return whether only programs on this machine can reach a server that listens on `host`."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _read(name: str, given: Given) -> Any:
    kind = OPTIONS[name].kind
    if not kind.many:
        return _read_one(kind, given, given.value)
    parts = given.value if isinstance(given.value, (tuple, list)) else [given.value]
    pieces = [piece for part in parts for piece in (part.split(",") if isinstance(part, str) else [part])]
    return tuple(dict.fromkeys(_read_one(kind, given, piece) for piece in pieces))


def _read_one(kind: Kind, given: Given, written: object) -> Any:
    written = written.strip() if kind.many and isinstance(written, str) else written
    try:
        value = kind.read(_text(written, kind.native) if given.typed else str(written))
    except ValueError as exc:
        raise ConfigError(f"{given.source}: {written!r} is not valid", kind.advice(written)) from exc
    return given.base / value if isinstance(value, Path) else value


def _text(value: object, native: tuple[type, ...]) -> str:
    """Return the text of a TOML value. It compares types exactly, because a bool is not a number here."""
    if type(value) not in native:
        raise ValueError(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def _check(settings: Settings, sources: Mapping[str, str]) -> None:
    """Check what depends on more than one value, or on this machine."""
    if settings.auth == "none" and settings.listen is None and not is_loopback(settings.host):
        raise ConfigError(
            f"{sources['host']}: {settings.host!r} is not a loopback address",
            "without authentication, anybody who reaches this port can run code; add --auth token (`kernelbridge token "
            "new` makes tokens), --auth jwt, or --auth proxy with a reverse proxy that authenticates; or keep "
            "127.0.0.1, ::1 or localhost",
        )
    if settings.tls_key is not None and settings.tls_cert is None:
        raise ConfigError(
            f"{sources['tls_key']} needs --tls-cert", "the key alone is not enough: name the certificate too"
        )
    if not settings.isolation and settings.runtime != "local":
        raise ConfigError(
            f"{sources['isolation']} is only valid with --runtime local",
            f"the runtime is {settings.runtime!r}; add --runtime local, or leave isolation on",
        )
    for name in ("oci_runtime", "gpus"):
        if getattr(settings, name) is not None and settings.runtime != "docker":
            raise ConfigError(
                f"{sources[name]} is only valid with --runtime docker",
                f"with {settings.runtime!r}, workspaces could run without it; add --runtime docker, or leave it out",
            )
    if not settings.isolation and (unused := [name for name in sources if OPTIONS[name].group == EGRESS]):
        raise ConfigError(
            f"{sources[unused[0]]} is of no use without isolation",
            "programs then have the network of this machine; leave it out, or leave isolation on",
        )
    _check_egress(settings, sources)
    if settings.audit_code and settings.audit_log is None:
        raise ConfigError(
            f"{sources['audit_code']} is only valid with --audit-log", "name the file of the audit log, or leave it out"
        )
    if settings.max_buffered < settings.max_message:
        setting = "max_buffered" if "max_buffered" in sources else "max_message"
        raise ConfigError(
            f"{sources[setting]}: max_buffered must be at least max_message",
            f"one message may have {format_size(settings.max_message)}, but the messages of all clients together only "
            f"{format_size(settings.max_buffered)}",
        )
    if settings.ca_bundle is not None and not (settings.ca_bundle.is_file() and os.access(settings.ca_bundle, os.R_OK)):
        raise ConfigError(
            f"{sources['ca_bundle']}: {str(settings.ca_bundle)!r} cannot be read", "expected a PEM file that exists"
        )


def _check_egress(settings: Settings, sources: Mapping[str, str]) -> None:
    if settings.egress_proxy is not None and settings.egress == "open":
        raise ConfigError(
            f"{sources['egress_proxy']} is not possible with --egress open",
            "everybody can make a name that leads into a private network, and behind a proxy nobody could check that; "
            "name the hosts with --egress-allow",
        )
    fields_of_hosts = [(secret.host, secret.port, secret.header.lower()) for secret in settings.egress_secret]
    if len(set(fields_of_hosts)) < len(fields_of_hosts):
        raise ConfigError(
            f"{sources['egress_secret']} names a header field of a host twice", "each can have only one value"
        )
