#!/bin/bash
# Builds build/deb/nvmeofd_<version>_all.deb out of the tracked files as they are in the working tree, so that what is
# tested is what is there. Does nothing when no file that goes in has changed.
#
# DEB_BUILD_OPTIONS without "nocheck" runs the unit tests in the build, with the libraries of the distribution.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# Another Python first in PATH (pyenv, a virtual environment) lacks Debian's modules.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
export DEB_BUILD_OPTIONS=${DEB_BUILD_OPTIONS-nocheck} DEB_BUILD_PROFILES=
mkdir -p build
exec 9>build/deb.lock
flock 9

version=$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' nvmeofd/__init__.py)
out=build/deb
deb=$out/nvmeofd_${version}_all.deb
tree=$out/nvmeofd-$version

files=(CHANGELOG.md LICENSE Makefile README.md pyproject.toml nvmeofd bin completions dbus libexec man packaging systemd)
if [[ " $DEB_BUILD_OPTIONS " == *" nocheck "* ]]; then
    DEB_BUILD_PROFILES=nocheck
else
    files+=(tests)
fi

list=$(git ls-files -- "${files[@]}")
# Tracked but deleted in the working tree: not there, so not in the package.
mapfile -t list < <(while IFS= read -r file; do [[ ! -e $file ]] || echo "$file"; done <<<"$list")
key=$({ cat scripts/build-deb.sh; echo "$DEB_BUILD_OPTIONS"; cat /etc/debian_version; stat -c '%a %n' "${list[@]}"; cat "${list[@]}"; } | sha256sum | cut -d' ' -f1)
if [[ -e $deb && $(cat "$out/key" 2>/dev/null) == "$key" ]]; then
    exit 0
fi

rm -rf "$out"
mkdir -p "$tree"
printf '%s\0' "${list[@]}" | tar --null -T - -c | tar -x -C "$tree"
cp -r packaging/deb "$tree/debian"
log=$out/build.log
if ! (cd "$tree" && exec dpkg-buildpackage -us -uc -b) >"$log" 2>&1 9>&-; then
    cat "$log"
    exit 1
fi
echo "$key" >"$out/key"
echo "built $deb"
