#!/bin/sh
# Build the wheel, install it into an empty environment of each Python that the project supports, and
# look there at what was installed. All of it in a temporary folder. `make dist-check` hands over a
# Python that has pip. A Python that is absent is skipped, and said so.
. "$(dirname "$0")/find_python.sh"
sources=$(cd "$(dirname "$0")/.." && pwd)
folder=$(mktemp -d) && trap 'rm -rf "$folder"' EXIT INT TERM
"$1" -m pip wheel --quiet --no-deps --wheel-dir "$folder" "$sources" || exit 1
wheel=$(ls "$folder"/*.whl) || exit 1
echo "== built $(basename "$wheel")"
failed="" ran=""
for version in 3.11 3.12 3.13 3.14; do
    python=$(find_python "$version")
    if [ -z "$python" ]; then
        echo "== Python $version: skipped, it is neither on PATH nor in pyenv"
        continue
    fi
    # Elsewhere than among the sources, which must not be imported.
    if (
        cd "$folder" && "$python" -m venv "venv-$version" && bin="venv-$version/bin" \
            && "$bin/pip" install --quiet --constraint "$sources/constraints.txt" "$wheel" \
            && "$bin/python" -I "$sources/tests/dist_check.py" "$wheel" bare \
            && "$bin/pip" install --quiet --constraint "$sources/constraints.txt" \
                "trio_sessions[cli,postgresql,testing] @ file://$wheel" \
            && "$bin/python" -I "$sources/tests/dist_check.py" "$wheel" extras \
            && "$bin/trio-sessions" --version
    ); then
        echo "== Python $version: passed"
        ran="$ran $version"
    else
        echo "== Python $version: failed"
        failed="$failed $version"
    fi
done
echo "== passed on:${ran:- none}; failed on:${failed:- none}"
[ -z "$failed" ] && [ -n "$ran" ]
