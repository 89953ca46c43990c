#!/bin/bash
# Builds nvmeofd_<version>_all.deb and its source package out of the tracked files as they are in the working tree.
# Does nothing when no file that goes in has changed.
#
# Usage: build-deb.sh [FOLDER [VERSION]]
# FOLDER is build/deb if not given. With VERSION, the package is another version of the same tree, to upgrade to.
#
# DEB_BUILD_OPTIONS without "nocheck" runs the unit tests in the build, with the libraries of the distribution.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/tracked.sh
# Another Python first in PATH (pyenv, a virtual environment) lacks Debian's modules.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
export DEB_BUILD_OPTIONS=${DEB_BUILD_OPTIONS-nocheck} DEB_BUILD_PROFILES=
out=${1:-build/deb}
version=${2:-$(tree_version)}
mkdir -p build
exec 9>build/deb.lock
flock 9

deb=$out/nvmeofd_${version}_all.deb
tree=$out/nvmeofd-$version

files=(.)
if [[ " $DEB_BUILD_OPTIONS " == *" nocheck "* ]]; then
    DEB_BUILD_PROFILES=nocheck
    # An edit there makes no other package.
    files+=(':!tests' ':!bench' ':!scripts' ':!.ci')
fi
mapfile -t list < <(tracked "${files[@]}")
key=$(fingerprint "$version $DEB_BUILD_OPTIONS" scripts/build-deb.sh scripts/tracked.sh "${list[@]}")
if [[ -e $deb && $(cat "$out/key" 2>/dev/null) == "$key" ]]; then
    exit 0
fi

rm -rf "$out"
mkdir -p "$tree"
printf '%s\0' "${list[@]}" | tar --null -T - -c | tar -x -C "$tree"
cp -r "$tree/packaging/deb" "$tree/debian"
if [[ $version != "$(tree_version)" ]]; then
    sed -i "s/^__version__ = .*/__version__ = \"$version\"/" "$tree/nvmeofd/__init__.py"
    { sed "1s/([^)]*)/($version)/" packaging/deb/changelog; echo; cat packaging/deb/changelog; } >"$tree/debian/changelog"
fi
log=$out/build.log
if ! (cd "$tree" && exec dpkg-buildpackage -us -uc) >"$log" 2>&1 9>&-; then
    tail -n 40 "$log" >&2
    echo "$0: failed, see $log" >&2
    exit 1
fi
echo "$key" >"$out/key"
echo "built $deb"
