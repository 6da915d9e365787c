# Shared by the scripts: words on the terminal, and installing what a stage needs. Sourced, not run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Downloads and generated clips that may be kept from run to run.
# shellcheck disable=SC2034 # read by those who source this
CACHE=${PENSTOCK_CACHE:-$ROOT/.cache}

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

# need COMMAND[=PACKAGE]...: installs the Debian packages of the commands that are not there.
need() {
    local missing=() pair cmd
    for pair in "$@"; do
        cmd=${pair%%=*}
        command -v "$cmd" >/dev/null || missing+=("${pair#*=}")
    done
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
}

# need_packages PACKAGE...: for packages that bring no command of their own.
need_packages() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] || apt_install "${missing[@]}"
}

apt_install() {
    command -v apt-get >/dev/null || die "please install: $* (only Debian's apt is known here)"
    local sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    say "installing Debian packages: $*"
    if [ -z "${APT_UPDATED:-}" ]; then
        "${sudo[@]}" apt-get update -qq
        export APT_UPDATED=1
    fi
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

need_rust() {
    command -v cargo >/dev/null || die "cargo is missing: install Rust 1.95 or newer (https://rustup.rs)"
    need cc=gcc
}

# free_port: a TCP and UDP port on loopback that nobody listens on now.
free_port() {
    python3 - <<'PY'
import socket
while True:
    t = socket.socket(); t.bind(("127.0.0.1", 0)); p = t.getsockname()[1]
    u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    try: u.bind(("127.0.0.1", p))
    except OSError: continue
    print(p); break
PY
}
