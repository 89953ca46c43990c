#!/bin/bash
# Makes .venv with what the tests and linters need; makes it anew when that, or the interpreter, has changed.
# The project itself is not installed there: tests import it from the tree.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# Debian's own: the one that the daemon runs on, whatever else PATH offers.
python=/usr/bin/python3
venv=.venv
log=build/venv.log
mkdir -p build
exec 9>build/venv.lock
flock 9

requirements=$("$python" -I - <<'PYTHON'
import sys, tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
print(*project["dependencies"], *extras["test"], *extras["lint"], sep="\n")
PYTHON
)
key=$({ cat scripts/setup-venv.sh; echo "$PWD"; "$python" -VV; echo "$requirements"; } | sha256sum | cut -d' ' -f1)
if [[ $(cat "$venv/.key" 2>/dev/null) == "$key" ]]; then
    exit 0
fi

echo "making $venv"
rm -rf "$venv"
"$python" -m venv "$venv"
# Downloads are retried as a whole, too: a connection that breaks in the middle of a file is not retried by pip.
for attempt in 1 2 3; do
    if "$venv/bin/python" -m pip install -q --use-pep517 --retries 5 -r /dev/stdin <<<"$requirements" >"$log" 2>&1 9>&-; then
        echo "$key" >"$venv/.key"
        exit 0
    fi
    tail -n 30 "$log" >&2
    echo "$0: attempt $attempt failed, see $log" >&2
done
exit 1
