#!/bin/bash
# Makes a root file system from Debian's packages and writes it to standard output as a tar archive.
#
#     bootstrap.sh SUITE MIRROR PACKAGE...
#
# Needs root and debootstrap. Progress and errors go to standard error, and nothing is left on disk. The caller pipes the
# archive into `docker import`, so no registry is needed.
set -euo pipefail

suite=$1 mirror=$2
shift 2
packages=$(IFS=,; echo "$*")

work=$(mktemp -d "${TMPDIR:-/var/tmp}/kernelbridge-base.XXXXXXXX")
# One file system only: if debootstrap left its /proc mounted, nothing in there may be removed.
trap 'rm -rf --one-file-system "$work"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
root=$work/root

# Documentation and translations are more than half of a minimal Debian. dpkg also leaves them out of packages that are
# installed later. Copyright files stay, because licenses require them.
mkdir -p "$root/etc/dpkg/dpkg.cfg.d" "$root/etc/apt/apt.conf.d"
cat > "$root/etc/dpkg/dpkg.cfg.d/kernelbridge" <<'CONF'
force-unsafe-io
path-exclude /usr/share/doc/*
path-include /usr/share/doc/*/copyright
path-exclude /usr/share/man/*
path-exclude /usr/share/info/*
path-exclude /usr/share/locale/*
path-include /usr/share/locale/locale.alias
CONF
cat > "$root/etc/apt/apt.conf.d/kernelbridge" <<'CONF'
APT::Install-Recommends "false";
Acquire::Languages "none";
Dir::Cache::pkgcache "";
Dir::Cache::srcpkgcache "";
CONF

debootstrap --variant=minbase --include="$packages" "$suite" "$root" "$mirror" >&2

if [[ $mirror == *://deb.debian.org/debian* ]]; then
  cat > "$root/etc/apt/sources.list" <<SOURCES
deb $mirror $suite main
deb $mirror $suite-updates main
deb ${mirror%/debian*}/debian-security $suite-security main
SOURCES
fi

# The rules above do not apply to what debootstrap itself unpacked.
find "$root/usr/share/doc" -type f ! -name copyright -delete
find "$root/usr/share/doc" -depth \( -type l -o -type d -empty \) -delete
rm -rf "${root:?}"/usr/share/{man,info}/* "$root"/usr/share/locale/*/ \
  "$root"/var/cache/apt/*.bin "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/* \
  "$root"/var/log/{bootstrap.log,dpkg.log,alternatives.log,apt} "$root"/var/cache/{debconf/*-old,ldconfig/aux-cache} \
  "${root:?}"/dev/* "$root"/etc/machine-id "$root"/etc/hostname "$root"/etc/resolv.conf

# `python` as in the public Python image.
[[ -e $root/usr/bin/python3 && ! -e $root/usr/local/bin/python ]] && ln -s /usr/bin/python3 "$root/usr/local/bin/python"

tar --create --numeric-owner --one-file-system --directory "$root" .
