#!/bin/bash
# Unpacks Debian's dbus-broker into build/dbus-broker, for tests on that bus. Does nothing when it is there.
#
# It is not installed: the package makes itself the system bus of the machine.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p build
exec 9>build/dbus-broker.lock
flock 9
[[ ! -x build/dbus-broker/usr/bin/dbus-broker-launch ]] || exit 0

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
fetch() {
    # As the one who asks and not as _apt, who cannot write to a directory of somebody else's.
    (cd "$work" && apt-get -q -o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=5 download dbus-broker)
}
if ! fetch >"$work/log" 2>&1; then
    cat "$work/log" >&2
    echo "$0: no dbus-broker, so the tests on it are skipped" >&2
    exit 0
fi
dpkg-deb --extract "$work"/dbus-broker_*.deb "$work/tree"
rm -rf build/dbus-broker
mv "$work/tree" build/dbus-broker
