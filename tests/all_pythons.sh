#!/bin/sh
# Run the suite on each Python that the project supports, in an environment of its own, .venv-3.12
# and so on; `make test-all` hands its PYTEST_ARGS on. A Python that is absent is skipped, and said so.
. "$(dirname "$0")/find_python.sh"
failed="" ran=""
for version in 3.11 3.12 3.13 3.14; do
    python=$(find_python "$version")
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
