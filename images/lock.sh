#!/bin/bash
# Writes the lock files of the images: the exact version of every Python package that they install, with its hashes.
#
#     images/lock.sh [--upgrade]
#
# Versions that are locked stay, unless the inputs exclude them; with --upgrade, all become the newest that the inputs
# allow. Other arguments go to `uv pip compile`. Needs uv (`pip install uv`) and a Python package index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "images/lock.sh: $1" >&2
  exit 1
}

command -v uv > /dev/null || fail "uv is not in PATH: \`pip install uv\`"

# Pythons and processors that a base may have. One lock file serves all of them.
pythons=(3.11 3.12 3.13 3.14)
platforms=(x86_64-manylinux_2_28 aarch64-manylinux_2_28)

# Without --python, uv searches the machine for each of these Pythons, though it needs none of them.
compile() {
  uv pip compile --quiet --python "$(command -v python3)" "$@" > /dev/null
}

# lock INPUT LOCK [ARGUMENT...]
lock() {
  local input=$1 lock=$2 python platform
  shift 2
  compile --universal --python-version "${pythons[0]}" --only-binary :all: --emit-build-options \
    --generate-hashes --no-strip-extras --custom-compile-command images/lock.sh --output-file "$lock" "$@" "$input"
  # The versions were chosen for all Pythons and processors together, so one of them may lack a wheel.
  for python in "${pythons[@]}"; do
    for platform in "${platforms[@]}"; do
      compile --python-version "$python" --python-platform "$platform" "$lock" \
        || fail "$lock: no wheels for Python $python on $platform; uv's message is above. Exclude that version in $input"
    done
  done
}

lock images/workspace/slim.in images/workspace/slim.txt "$@"
# After it: the larger image adds to the smaller one, with the same versions.
lock images/workspace/workspace.in images/workspace/workspace.txt "$@"
lock pyproject.toml images/server/requirements.txt --extra server "$@"
# What builds kernelbridge's own wheel.
python3 -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
  | lock - images/server/build-requirements.txt "$@"
