#compdef nvmeofctl
# zsh completion for nvmeofctl(8). What could come next is for nvmeofctl itself to say.

_nvmeofctl() {
    local line value description
    local -a values shown open open_shown
    local -i directories=0 found=1
    while IFS= read -r line; do
        if [[ $line == :directories ]]; then
            directories=1
            continue
        fi
        value=${line%%$'\t'*}
        description=$value
        [[ $line != *$'\t'* ]] || description="$value  -- ${line#*$'\t'}"
        if [[ $value == *= ]]; then
            open+=("$value")
            open_shown+=("$description")
        else
            values+=("$value")
            shown+=("$description")
        fi
    done < <(command -- "${(Q)words[1]}" __complete -- "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)
    (( ! ${#values} )) || compadd -l -d shown -a values && found=0
    (( ! ${#open} )) || compadd -l -S '' -d open_shown -a open && found=0
    (( ! directories )) || _files -/ && found=0
    return found
}

_nvmeofctl "$@"
