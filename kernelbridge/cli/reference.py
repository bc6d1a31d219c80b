"""`docs/reference/configuration.md`, made from the table of settings.

`python -m kernelbridge.cli.reference > docs/reference/configuration.md` writes it anew; a test compares the two.
"""

from __future__ import annotations

from itertools import groupby

from kernelbridge.config import OPTIONS, default_text
from kernelbridge.settings_kinds import Option
from kernelbridge.settings_sources import flag_name, variable_name

HEAD = """\
# Configuration

<!-- Made from kernelbridge/config.py by `python -m kernelbridge.cli.reference > docs/reference/configuration.md`. -->

Every setting is a flag of `kernelbridge serve` (and of `kernelbridge doctor`), an environment variable and a key of the
TOML file that `--config` or `KERNELBRIDGE_CONFIG` names. A flag wins over a variable, that over the file, the file
over the default. Every value that is given is checked, also one that another overrides. An empty variable counts as
absent.

A setting that does not exist is refused, with the nearest name: a misspelt limit must not become no limit. An address
other than a loopback one is refused too: there is no authentication yet, so a server that others are to reach stands
behind a reverse proxy that authenticates, on the same machine.

- **Sizes**: `512m`, `1g`, `16MiB`, or plain bytes. Units are powers of 1024.
- **Durations**: `250ms`, `90s`, `5m`, `1h`, `30d`, or plain seconds.
- **Relative paths** count from the working directory; in the file, from the file's directory. `~` is your home.
- **Several values**: the flag repeated, commas in the variable, an array in the file.
- **The Docker engine** is the one that `DOCKER_HOST` names, `unix:///path/of/docker.sock` or `tcp://127.0.0.1:2375`,
  else that of the usual socket. It must be on this machine, for its containers mount directories of the data directory.

```toml
# server.toml
memory = "2g"
linger = "5m"
allow_origin = ["https://app.example.org"]
```

```console
$ kernelbridge serve --config server.toml --cpus 2
```
"""

TAIL = """\
## Exit codes

| code | means |
|---|---|
| 0 | a clean stop, by SIGTERM or Ctrl-C; for `doctor`: `serve` would work |
| 2 | wrong settings or usage, a port or data directory in use |
| 1 | anything else |
"""


def configuration_page() -> str:
    """Give the text of `docs/reference/configuration.md`."""
    parts = [HEAD]
    for group, settings in groupby(OPTIONS.items(), key=lambda item: item[1].group):
        rows = [_row(name, option) for name, option in settings]
        table = ["| flag | variable | key | default | |", "|---|---|---|---|---|", *rows]
        parts.append(f"## {group}\n\n" + "\n".join(table) + "\n")
    return "\n".join([*parts, TAIL])


def _row(name: str, option: Option) -> str:
    flag = flag_name(name)
    flags = f"`{flag}`, `--no-{flag[2:]}`" if option.kind.native == (bool,) else f"`{flag} {option.kind.metavar}`"
    key = f"`{name}`" if option.in_file else ""
    cells = (flags, f"`{variable_name(name)}`", key, default_text(name), option.help)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(configuration_page(), end="")  # noqa: T201 - this is its purpose
