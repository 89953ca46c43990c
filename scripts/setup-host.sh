#!/bin/bash
# Installs the Debian packages that building and testing need, and only those that are missing.
# With everything there it asks dpkg once and leaves the package lists alone.
set -euo pipefail

if ! command -v dpkg-query >/dev/null; then
    echo "$0: needs a Debian machine (12 or later)" >&2
    exit 1
fi

packages=(
    # the packages: DEB with its tests, RPM, man page
    debhelper dh-python dpkg-dev fakeroot lintian pkgconf pybuild-plugin-pyproject python3-all
    python3-dbus-next python3-hypothesis python3-pytest python3-pyudev python3-sdnotify python3-setuptools rpm rpmlint
    mandoc
    # the virtual environment; PyGObject and dbus-python are built for it
    ca-certificates gcc libc6-dev libcairo2-dev libdbus-1-dev libgirepository1.0-dev libglib2.0-dev python3-dev python3-venv
    # tests on a private bus, checks of the unit file, completions
    dbus dbus-bin dbus-daemon systemd fish zsh
    # the programs in docs/clients.md
    jq libglib2.0-bin
    # tests in a guest
    debian-archive-keyring e2fsprogs ipxe-qemu mmdebstrap openssh-client qemu-system-x86 qemu-utils seabios
)
# Debian 13 and later have systemd.pc in a package of its own; on 12 it is in systemd.
. /etc/os-release
if [[ ${VERSION_ID:-13} != 12 ]]; then
    packages+=(systemd-dev)
fi
sudo=()
if ((EUID != 0)); then
    # A root filesystem without root: mmdebstrap needs ranges of user ids.
    packages+=(uidmap)
    sudo=(sudo)
fi

installed=$(dpkg-query -W -f '${db:Status-Status} ${Package}\n' "${packages[@]}" 2>/dev/null | sed -n 's/^installed //p' || true)
missing=()
for package in "${packages[@]}"; do
    grep -qxF "$package" <<<"$installed" || missing+=("$package")
done
broker=$(dirname "${BASH_SOURCE[0]}")/setup-broker.sh
((${#missing[@]})) || exec "$broker"

echo "installing: ${missing[*]}"
if ((EUID != 0)) && ! command -v sudo >/dev/null; then
    echo "$0: without sudo, root has to run this: apt-get install ${missing[*]}" >&2
    exit 1
fi
apt() {
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300 "$@" </dev/null
}
# A mirror in the middle of its update answers with files that do not fit together: the lists are read again then.
for attempt in 1 2 3; do
    if apt update -q && apt install -qy --no-install-recommends "${missing[@]}"; then
        exec "$broker"
    fi
    echo "$0: attempt $attempt failed" >&2
done
exit 1
