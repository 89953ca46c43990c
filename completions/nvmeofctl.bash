# bash completion for nvmeofctl(8). What could come next is for nvmeofctl itself to say.

_nvmeofctl() {
    # The words up to the cursor, as the shell will see them: bash cuts them at colons and equals signs, too.
    local rest=${COMP_LINE:0:COMP_POINT} words=() stripped word i
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        stripped=${rest#"${rest%%[![:space:]]*}"}
        ((i < COMP_CWORD)) || word=$stripped
        if ((i == 0)) || [[ $stripped != "$rest" ]]; then
            words+=("$word")
        else
            words[-1]+=$word
        fi
        rest=${stripped#"$word"}
    done

    local current=${words[-1]} quote=
    for ((i = 1; i < ${#words[@]}; i++)); do
        word=${words[i]}
        case $word in
            \"*|\'*) word=${word:1}; word=${word%[\"\']} ;;
            *) word=${word//\\/} ;;
        esac
        words[i]=$word
    done
    [[ $current != [\"\']* ]] || quote=${current:0:1}
    current=${words[-1]}

    # What bash takes for the word to replace begins after the last place where it cut.
    local before=
    if [[ -z $quote && $current == *[:=]* ]]; then
        before=${current%"${current##*[:=]}"}
    fi

    local value description directory
    COMPREPLY=()
    while IFS=$'\t' read -r value description; do
        if [[ $value == :directories ]]; then
            while IFS= read -r directory; do
                COMPREPLY+=("$(_nvmeofctl_quoted "$quote" "${directory#"$before"}")/")
                compopt -o nospace
            done < <(compgen -d -- "$current")
            continue
        fi
        [[ $value == "$current"* ]] || continue
        [[ $value != *= ]] || compopt -o nospace
        COMPREPLY+=("$(_nvmeofctl_quoted "$quote" "${value#"$before"}")")
    done < <(command -- "${COMP_WORDS[0]}" __complete -- "${words[@]:1}" 2>/dev/null)
}

_nvmeofctl_quoted() {
    case $1$2 in
        [\"\']*) printf %s "$2" ;;
        *=) printf '%q=' "${2%=}" ;;
        *) printf %q "$2" ;;
    esac
}

complete -F _nvmeofctl nvmeofctl
