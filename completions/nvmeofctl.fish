# fish completion for nvmeofctl(8). What could come next is for nvmeofctl itself to say.

function __nvmeofctl_complete
    set -l words (commandline --tokenize --cut-at-cursor --current-process)
    set -l current (commandline --current-token --cut-at-cursor)
    for line in (command nvmeofctl __complete -- $words[2..-1] "$current" 2>/dev/null)
        if test "$line" = :directories
            __fish_complete_directories "$current" ''
        else
            printf '%s\n' $line
        end
    end
end

complete --command nvmeofctl --no-files --arguments '(__nvmeofctl_complete)'
