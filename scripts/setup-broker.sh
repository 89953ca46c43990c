#!/bin/bash
# Unpacks Debian's dbus-broker into build/dbus-broker, for tests on that bus. Does nothing when it is there.
#
# It is not installed: the package makes itself the system bus of the machine.
#
# NVMEOFD_WITHOUT_BROKER=1 goes on without it, and the tests on that bus are skipped.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p build
exec 9>build/dbus-broker.lock
flock 9
[[ ! -x build/dbus-broker/usr/bin/dbus-broker-launch ]] || exit 0

sudo=()
((EUID == 0)) || sudo=(sudo)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch() {
    # As the one who asks and not as _apt, who cannot write to a directory of somebody else's.
    (cd "$work" && apt-get -q -o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=5 download dbus-broker)
}
# Package lists that are older than the mirror name files that are not there any more.
if ! fetch >"$work/log" 2>&1 && ! { "${sudo[@]}" apt-get -q -o Acquire::Retries=5 update && fetch; } >>"$work/log" 2>&1; then
    cat "$work/log" >&2
    if [[ ${NVMEOFD_WITHOUT_BROKER:-} == 1 ]]; then
        echo "$0: no dbus-broker, so the tests on it are skipped" >&2
        exit 0
    fi
    echo "$0: cannot download dbus-broker; with NVMEOFD_WITHOUT_BROKER=1 the tests on it are skipped" >&2
    exit 1
fi
dpkg-deb --extract "$work"/dbus-broker_*.deb "$work/tree"
rm -rf build/dbus-broker
mv "$work/tree" build/dbus-broker
