#!/bin/bash
# Holds the Debian packages in a folder, binary and source, against policy. Ends with an error if lintian has anything
# to say.
#
# Usage: lintian.sh [FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8

options=(--pedantic --display-info --fail-on=none)
((EUID != 0)) || options+=(--allow-root)
. /etc/os-release
if [[ ${VERSION_ID:-13} == 12 ]]; then
    # Tags of Debian 12's lintian that Debian 13's has no more:
    # - the version of the policy that Debian 13 asks for is news to it;
    # - it wants a script for other init systems, but this is a service of systemd by its nature: systemd orders its
    #   mounts before the network and gives it its runtime folder, its limits and its sandbox.
    options+=(--suppress-tags newer-standards-version,package-supports-alternative-init-but-no-init.d-script)
fi
changes=("${1:-build/deb}"/nvmeofd_*.changes)
# --fail-on=info of Debian 12's lintian counts what is suppressed.
report=$(lintian "${options[@]}" "${changes[@]}")
if [[ -n $report ]]; then
    echo "$report"
    exit 1
fi
