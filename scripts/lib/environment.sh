# shellcheck shell=bash
# Sourced before common.sh by the two scripts that must run on a fresh machine: quickstart.sh and test.sh.
#
# make_environment REQUIREMENTS: installs these packages into .venv, in the versions of constraints.txt, unless it has
# them. If PYTHON is set, that Python is used as it is.
make_environment() {
    local requirements=$1 stamp=.venv/installed-$1 python
    if [[ -n ${PYTHON:-} ]]; then return; fi
    if [[ -f $stamp ]] && cmp --silent <(cat requirements.txt "$requirements" constraints.txt) "$stamp"; then return; fi
    for python in python3 python3.13 python3.12 python3.11 python; do
        if command -v "$python" >/dev/null && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
            break
        fi
        python=
    done
    if [[ -z $python ]]; then
        echo "no Python 3.11 or later found; install one, or set PYTHON to one with $requirements installed" >&2
        exit 1
    fi
    echo "installing $requirements into .venv (once; some minutes)"
    "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r "$requirements" -c constraints.txt
    cat requirements.txt "$requirements" constraints.txt >"$stamp"
}
