# To be sourced: find_python VERSION prints a Python of that version that can make environments, or
# nothing. Each candidate is run, because a pyenv shim stands on PATH for versions that are not active.
find_python() {
    for candidate in "python$1" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$1"*/bin/python3 python3; do
        found=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
        if [ "$found" = "$1" ] && "$candidate" -c 'import ensurepip' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
}
