# Sourced by the launch scripts and run_tests.sh: `use_environment FILE` chooses the Python to run with, sets PYTHON to
# it and puts its folder first on PATH. FILE is requirements.txt or requirements-dev.txt.
#
# An active environment that meets FILE is used as it is, so that a machine's own CUDA build of torch is never replaced.
# Otherwise .venv in the project's folder is made once, with the versions of constraints.txt, and reused until FILE
# changes. PYTHON=/path/to/python names the interpreter to use and turns the search off.
# shellcheck shell=bash

project_dir="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
venv_dir="$project_dir/.venv"

say() { printf '%s\n' "$*" >&2; }

fail() { # STATUS MESSAGE...
    local status="$1"
    shift
    say "error: $*"
    exit "$status"
}

is_usable() { # PYTHON MINOR: it starts, and is Python 3.MINOR or newer
    "$1" -c "import sys; sys.exit(sys.version_info < (3, $2))" >/dev/null 2>&1
}

first_usable() { # MINOR CANDIDATE...: the interpreter behind the first candidate that is usable
    local minor="$1" candidate
    shift
    for candidate in "$@"; do
        if is_usable "$candidate" "$minor"; then
            "$candidate" -c 'import sys; print(sys.executable)'
            return
        fi
    done
    return 1
}

unmet_requirements() { # PYTHON FILE: what PYTHON lacks, one requirement a line
    "$1" "$project_dir/tools/check_requirements.py" "$2"
}

adopt() { # PYTHON: use it from here on
    PYTHON="$1"
    PATH="$(dirname "$PYTHON"):$PATH"
    export PATH
}

use_environment() { # FILE
    local file="$project_dir/$1" active lacking
    if [ -n "${PYTHON:-}" ]; then
        active="$(first_usable 10 "$PYTHON")" || fail 2 "PYTHON=$PYTHON is no Python 3.10 or newer"
        lacking="$(unmet_requirements "$active" "$file")" || fail 2 "PYTHON=$PYTHON does not meet $1:"$'\n'"$lacking"
        adopt "$active"
        return
    fi
    active="$(first_usable 10 ${VIRTUAL_ENV:+"$VIRTUAL_ENV/bin/python"} \
        ${CONDA_PREFIX:+"$CONDA_PREFIX/bin/python"} python3 python || true)"
    if [ -n "$active" ] && lacking="$(unmet_requirements "$active" "$file")"; then
        adopt "$active"
        return
    fi
    if ! is_installed "$file"; then
        [ -z "$active" ] || say "$active lacks $(printf '%s\n' "$lacking" | wc -l | tr -d ' ') packages of $1"
        make_environment "$file"
    fi
    adopt "$venv_dir/bin/python"
    unset PYTHONDONTWRITEBYTECODE # the first process to import a module compiles it for all later ones
}

stamp_of() { printf '%s' "$venv_dir/.installed-$(basename "$1")"; }

wanted() { cat "$project_dir/requirements.txt" "$1" "$project_dir/constraints.txt"; } # what a stamp must equal

is_installed() { # FILE: .venv holds it whole, in its present version
    is_usable "$venv_dir/bin/python" 10 && wanted "$1" | cmp -s - "$(stamp_of "$1")"
}

make_environment() { # FILE; one process at a time, the others wait and find it made
    mkdir -p "$venv_dir" || fail 1 "cannot write $venv_dir: activate an environment that meets $(basename "$1")"
    exec 9>"$venv_dir/.lock"
    if command -v flock >/dev/null && ! flock -n 9; then
        say "Another script is making $venv_dir: waiting for it"
        flock 9
    fi
    if ! is_installed "$1"; then
        create_venv
        install_requirements "$1"
    fi
    exec 9>&-
}

create_venv() {
    local base
    is_usable "$venv_dir/bin/python" 10 && "$venv_dir/bin/python" -m pip --version >/dev/null 2>&1 && return
    base="$(first_usable 11 python3 python python3.13 python3.12 python3.11)" ||
        fail 1 "no Python 3.11 or newer on PATH to make an environment with: install one, or activate an environment"
    say "Making $venv_dir with $("$base" --version)"
    find "$venv_dir" -mindepth 1 -maxdepth 1 ! -name .lock -exec rm -rf {} +
    "$base" -m venv "$venv_dir" >&2 || fail 1 "'$base -m venv' failed (Debian and Ubuntu: apt install python3-venv)"
}

install_requirements() { # FILE
    local file="$1" log="$venv_dir/install.log" started=$SECONDS
    say "Installing $(basename "$file") (log: $log)"
    suggest_cpu_build
    # DeepSpeed compiles its operators when they are first used, never here. Bytecode is compiled at first import.
    if ! DS_BUILD_OPS=0 PIP_USER=0 PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv_dir/bin/python" -m pip install --no-input \
        --no-compile --prefer-binary --progress-bar off -c "$project_dir/constraints.txt" -r "$file" 2>&1 9>&- |
        tee "$log" | show_progress "$started"; then
        say "$(grep -iE '^ *(error|fatal)' "$log" | tail -n 3)"
        if grep -qiE 'name resolution|getaddrinfo|connection (refused|timed out|error)|network is unreachable|max retries' "$log"; then
            say "The package index could not be reached: is there a network, or a proxy to set (HTTPS_PROXY)? Without one,"
            say "install requirements.txt where there is, from wheels, and activate that environment."
        fi
        fail 1 "installing $(basename "$file") failed: see $log; run the same command again once the cause is gone"
    fi
    wanted "$project_dir/requirements.txt" >"$(stamp_of requirements.txt)"
    wanted "$file" >"$(stamp_of "$file")"
    say "  installed in $((SECONDS - started)) s"
}

show_progress() { # START: a line every 25 packages, and one for the long last step
    local line count=0
    while IFS= read -r line; do
        case "$line" in
        Collecting*)
            count=$((count + 1))
            [ $((count % 25)) -ne 0 ] || say "  $((SECONDS - $1)) s: $count packages collected"
            ;;
        "Installing collected packages"*) say "  $((SECONDS - $1)) s: installing $count packages" ;;
        esac
    done
}

suggest_cpu_build() { # pip's default torch for Linux is the CUDA build; whoever has an index configured has chosen
    [ "$(uname -s)" = Linux ] && ! command -v nvidia-smi >/dev/null || return 0
    case "$("$venv_dir/bin/python" -m pip config list 2>/dev/null)" in
    *index-url* | *find-links* | *no-index*) return 0 ;;
    esac
    say "  no GPU here: PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu makes the download much smaller"
}
