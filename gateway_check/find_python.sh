#!/bin/sh
# Print the newest Python that mcp-context-forge supports (3.12 or 3.13), or say that there is none.
# Each candidate is run, because a pyenv shim stands on PATH for versions that are not active.
for version in 3.13 3.12; do
    for candidate in "python$version" \
        "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version"*/bin/python3 python3; do
        found=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
        if [ "$found" = "$version" ]; then
            echo "$candidate"
            exit 0
        fi
    done
done
echo "mcp-context-forge needs Python 3.12 or 3.13, and neither is on PATH or in pyenv:" \
    "install one, or name it with 'make gateway-check GATEWAY_PYTHON=/path/to/python3.13'." >&2
exit 1
