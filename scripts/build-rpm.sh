#!/bin/bash
# Builds RPMS/noarch/nvmeofd-<version>-*.rpm and its source package, out of the tracked files as they are in the working
# tree. Does nothing when none of them has changed.
#
# Usage: build-rpm.sh [FOLDER [ARCHIVE]]
# FOLDER is build/rpm if not given. ARCHIVE is nvmeofd-<version>.tar.gz to build from, instead of the working tree.
#
# RPM_BUILD_WITH=tests runs the unit tests in the build. RPM_DIST is what the names end in, instead of this host's.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
. scripts/tracked.sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
out=${1:-build/rpm}
archive=${2:-}
mkdir -p build
exec 9>build/rpm.lock
flock 9

version=$(tree_version)
mapfile -t list < <(tracked .)
key=$(fingerprint "$archive ${RPM_BUILD_WITH:-} ${RPM_DIST:-}" "${list[@]}")
if compgen -G "$out/RPMS/noarch/nvmeofd-$version-*.rpm" >/dev/null && [[ $(cat "$out/key" 2>/dev/null) == "$key" ]]; then
    exit 0
fi

rm -rf "$out"
mkdir -p "$out/SOURCES"
# The same sources make the same packages: times in them are those of the last commit, the name of this host is left out.
export SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}
if [[ -n $archive ]]; then
    cp "$archive" "$out/SOURCES/nvmeofd-$version.tar.gz"
else
    printf '%s\0' "${list[@]}" | tar --null -T - --sort=name --owner=0 --group=0 --numeric-owner \
        --mtime="@$SOURCE_DATE_EPOCH" --transform="s,^,nvmeofd-$version/,S" -c | gzip -n >"$out/SOURCES/nvmeofd-$version.tar.gz"
fi
options=(--define "_topdir $PWD/$out" --define '_buildhost localhost' --define 'use_source_date_epoch_as_buildtime 1'
    --define 'clamp_mtime_to_source_date_epoch 1' --define 'build_mtime_policy clamp_to_source_date_epoch')
if [[ $(rpm --eval '%_unitdir') == %* ]]; then
    # A host without Fedora's macros gets stand-ins, at the end of rpm's own macro path. First of all options: rpmbuild
    # forgets it after --without. What the spec file wants installed is not known to rpm there.
    standins=$(rpm --showrc | sed -n 's/^Macro path: //p'):$PWD/packaging/rpm/macros.debian
    options=(--macros="$standins" --nodeps "${options[@]}")
    [[ ${RPM_BUILD_WITH:-} == tests ]] || options+=(--without tests)
fi
[[ -z ${RPM_DIST:-} ]] || options+=(--define "dist $RPM_DIST")
log=$out/build.log
if ! rpmbuild "${options[@]}" -ba packaging/rpm/nvmeofd.spec >"$log" 2>&1 9>&-; then
    tail -n 40 "$log" >&2
    echo "$0: failed, see $log" >&2
    exit 1
fi
echo "$key" >"$out/key"
ls "$out"/RPMS/noarch/*.rpm
