"""Where settings are written: flags, environment variables, a TOML file. Reads them without checking values.

Each reader returns `{setting: Given}`. Unknown names are refused, with the nearest known one.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from kernelbridge.errors import ConfigError

PREFIX = "KERNELBRIDGE_"

CLIENT_VARIABLES = frozenset({"KERNELBRIDGE_URL", "KERNELBRIDGE_TOKEN"})
"""Variables of the commands that ask a running server: not settings of one."""

RESERVED = ("KERNELBRIDGE_TEST_",)
"""Variables that are not settings: those of the test-suite."""


@dataclass(frozen=True, slots=True)
class Given:
    """One value as it is written."""

    value: object
    """`str`; a repeated flag has `tuple[str, ...]`, and a TOML file any of its types."""
    source: str
    """Where it is written: `--memory`, `KERNELBRIDGE_MEMORY` or `server.toml: memory`."""
    base: Path
    """The directory that a relative path in `value` is relative to."""
    typed: bool = False
    """Whether `value` has a type (a TOML file), or is text (a flag, a variable)."""


def flag_name(name: str) -> str:
    """Return the flag of a setting: `data_dir` has `--data-dir`."""
    return "--" + name.replace("_", "-")


def variable_name(name: str) -> str:
    """Return the environment variable of a setting: `data_dir` has `KERNELBRIDGE_DATA_DIR`."""
    return PREFIX + name.upper()


def from_flags(flags: Mapping[str, object], cwd: Path, spelling: Mapping[str, str]) -> dict[str, Given]:
    """Read flags: `None` and `()` mean absent. `spelling` has the flags that are not named by `flag_name`."""
    given = {}
    for name, value in flags.items():
        if value is None or value == ():
            continue
        flag = spelling.get(name, flag_name(name))
        if isinstance(value, bool):
            flag, value = (flag if value else "--no-" + flag[2:]), str(value).lower()  # noqa: PLW2901 - a switch as text
        given[name] = Given(value, flag, cwd)
    return given


def from_environment(environ: Mapping[str, str], names: Iterable[str], cwd: Path) -> dict[str, Given]:
    """Read `KERNELBRIDGE_` variables; an empty one counts as absent. Raises `ConfigError` for unknown ones."""
    known = {variable_name(name): name for name in names}
    given = {}
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable.startswith(RESERVED) or variable in CLIENT_VARIABLES:
            continue
        if variable not in known:
            raise _unknown(f"The environment variable {variable} is not a setting", variable, known)
        if environ[variable]:
            given[known[variable]] = Given(environ[variable], variable, cwd)
    return given


def from_file(path: Path, names: Iterable[str]) -> dict[str, Given]:
    """Read a TOML file. Raises `ConfigError` if it is unreadable or has an unknown key."""
    try:
        with path.open("rb") as file:
            document = tomllib.load(file)
    except OSError as exc:
        raise ConfigError(
            f"The settings file {path} cannot be read", f"{exc.strerror or exc}; check --config or KERNELBRIDGE_CONFIG"
        ) from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"The settings file {path} is not valid TOML", str(exc)) from exc
    known = {name: name for name in names}
    for key in document:
        if key not in known:
            raise _unknown(f"{path}: {key!r} is not a setting", key, known)
    return {key: Given(value, f"{path}: {key}", path.parent, typed=True) for key, value in document.items()}


def _unknown(message: str, name: str, known: Mapping[str, str]) -> ConfigError:
    spelled = {setting: spelling for spelling, setting in known.items()}
    nearest = get_close_matches(name.removeprefix(PREFIX).lower().replace("-", "_"), spelled, n=1)
    hint = f"did you mean {spelled[nearest[0]]}? " if nearest else ""
    return ConfigError(message, hint + "`kernelbridge serve --help` lists every setting")
