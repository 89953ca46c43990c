#!/bin/bash
# Holds the spec file and the RPMs in a folder against rpmlint's rules, its warnings included.
#
# Usage: rpmlint.sh [FOLDER]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C.UTF-8
out=${1:-build/rpm}
exec rpmlint --strict --config packaging/rpm/rpmlint.toml packaging/rpm/nvmeofd.spec "$out"/RPMS/noarch/*.rpm "$out"/SRPMS/*.rpm
