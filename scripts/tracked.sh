# To be sourced: the tracked files as they are in the working tree, so that what is packaged and tested is what is there.

# The version of the tree.
tree_version() {
    sed -n 's/^__version__ = "\(.*\)"$/\1/p' nvmeofd/__init__.py
}

# Names of the tracked files below the given paths. One that is deleted in the working tree is not there.
tracked() {
    git ls-files -- "$@" | while IFS= read -r file; do [[ ! -e $file ]] || echo "$file"; done
}

# A key over names, modes and contents of the given files, of the first argument, and of the release of this machine.
fingerprint() {
    local what=$1
    shift
    { echo "$what"; cat /etc/debian_version 2>/dev/null; stat -c '%a %n' "$@"; cat "$@"; } | sha256sum | cut -d' ' -f1
}
