#!/bin/sh
# Run the suite on each Python that the project supports, in an environment of its own, .venv-3.12
# and so on; `make test-all` hands its PYTEST_ARGS on. A Python that is absent is skipped, and said so.
# Each candidate is run, because a pyenv shim stands on PATH for versions that are not active.
failed="" ran=""
for version in 3.11 3.12 3.13 3.14; do
    python=""
    for candidate in "python$version" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version"*/bin/python3 python3; do
        found=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
        if [ "$found" = "$version" ] && "$candidate" -c 'import ensurepip' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    if [ -z "$python" ]; then
        echo "== Python $version: skipped, it is neither on PATH nor in pyenv"
        continue
    fi
    echo "== Python $version: $python"
    if make --no-print-directory test "PYTHON=$python" "VENV=.venv-$version"; then
        ran="$ran $version"
    else
        failed="$failed $version"
    fi
done
echo "== passed on:${ran:- none}; failed on:${failed:- none}"
[ -z "$failed" ] && [ -n "$ran" ]
