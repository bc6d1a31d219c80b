"""Write `docs/reference/configuration.md` from the table of settings: `python docs/make_configuration.py`.

A test checks that the page is up to date.
"""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from textwrap import fill

from kernelbridge.settings.kinds import Option
from kernelbridge.settings.settings import OPTIONS, default_text
from kernelbridge.settings.sources import flag_name, variable_name

WIDTH = 120
"""Characters of a line."""

HEAD = """\
# Settings

<!-- Made by `python docs/make_configuration.py`. -->

Every setting is an option of `kernelbridge serve` and `kernelbridge doctor`, an environment variable, and a key of the
TOML file that `--config` or `KERNELBRIDGE_CONFIG` names; the headings below are the keys. An option wins over a
variable, a variable over the file, the file over the default. Every value is checked, even if another one overrides it.
An empty variable counts as absent.

The server refuses unknown settings and names the nearest known one, so a misspelt limit is never ignored. Without
[authentication](../how-to/authentication.md) it also refuses an address that is not a loopback address.

- **Sizes**: `512m`, `1g`, `16MiB`, or plain bytes. Units are powers of 1024.
- **Durations**: `250ms`, `90s`, `5m`, `1h`, `30d`, or plain seconds.
- **Relative paths** start from the working directory; in the file, from the file's directory. `~` is your home.
- **Several values**: repeat the option, use commas in the variable, or an array in the file.
- **The Docker engine** is the one that `DOCKER_HOST` names (`unix:///path/of/docker.sock` or `tcp://127.0.0.1:2375`),
  else the one at the usual socket. It must be on this machine, because its containers mount directories of the data
  directory.

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


def configuration_page() -> str:
    """Return the text of `docs/reference/configuration.md`."""
    parts = [HEAD]
    for group, settings in groupby(OPTIONS.items(), key=lambda item: item[1].group):
        parts += [f"## {group}\n", *(_section(name, option) for name, option in settings)]
    return "\n".join(parts)


def _section(name: str, option: Option) -> str:
    flag = flag_name(name)
    flags = f"`{flag}`, `--no-{flag[2:]}`" if option.kind.native == (bool,) else f"`{flag} {option.kind.metavar}`"
    facts = f"{flags} · `{variable_name(name)}` · default: {default_text(name)}"
    if not option.in_file:
        facts += " · not in the file"
    return f"### {name}\n\n{_wrapped(option.help)}\n\n{_wrapped(facts)}\n"


def _wrapped(text: str) -> str:
    return fill(text, WIDTH, break_on_hyphens=False)


if __name__ == "__main__":
    page = Path(__file__).parent / "reference" / "configuration.md"
    page.write_text(configuration_page(), encoding="utf-8")
