# Make environments and install into them: with uv if it is here, else with venv and pip.
# Sourced by the scripts; needs nothing but a Python from 3.11 on.

# uv trusts the certificates that the machine trusts, as pip does; the second is its older name.
export UV_SYSTEM_CERTS=${UV_SYSTEM_CERTS:-1} UV_NATIVE_TLS=${UV_NATIVE_TLS:-1}

# Print the path of a Python that will do.
find_python() {
    local candidate modules="sys"
    command -v uv >/dev/null || modules="sys, venv, ensurepip"
    local test="import $modules; assert sys.version_info >= (3, 11); print(sys.executable)"
    for candidate in ${PHAROX_PYTHON:-} python3 python3.14 python3.13 python3.12 python3.11 python; do
        if command -v "$candidate" >/dev/null && "$candidate" -c "$test" 2>/dev/null; then
            return
        fi
    done
    if command -v uv >/dev/null && uv python find --no-python-downloads '>=3.11' 2>/dev/null; then
        return
    fi
    echo "No Python from 3.11 on was found (with its venv module: the package python3-venv on" \
        "Debian). Install one, or name it in PHAROX_PYTHON." >&2
    return 1
}

# make_environment FOLDER: an empty environment in a new folder.
make_environment() {
    local python
    python=$(find_python) || return
    if command -v uv >/dev/null; then
        uv venv --quiet --no-project --python "$python" "$1"
    else
        "$python" -m venv "$1"
    fi
}

# install FOLDER ARGUMENT...: what `pip install ARGUMENT...` does, in an environment.
install() {
    local folder=$1
    shift
    if command -v uv >/dev/null; then
        uv pip install --quiet --python "$folder/bin/python" "$@"
    else
        "$folder/bin/python" -m pip install --quiet --quiet --disable-pip-version-check "$@"
    fi
}
