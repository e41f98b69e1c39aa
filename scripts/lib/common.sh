# shellcheck shell=bash
# What every script here needs: messages, packages, the toolchain, and a tidy end.
# Sourced, never run. Callers set `set -euo pipefail` first.

ROOT=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/../.." && pwd)
readonly ROOT
export ROOT

# The directory cargo builds into; an absolute path, whatever the caller has set.
TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}
[[ $TARGET_DIR == /* ]] || TARGET_DIR=$ROOT/$TARGET_DIR
readonly TARGET_DIR
export CARGO_TARGET_DIR=$TARGET_DIR

# shellcheck disable=SC2034 # read by the scripts that source this file
if [[ -t 1 && -z ${NO_COLOR:-} ]]; then
    BOLD=$'\e[1m' DIM=$'\e[2m' GREEN=$'\e[32m' RED=$'\e[31m' PLAIN=$'\e[0m'
else
    BOLD='' DIM='' GREEN='' RED='' PLAIN=''
fi

die() {
    printf '%s: %s\n' "$(basename -- "$0")" "$*" >&2
    exit 1
}

note() { printf '%s\n' "$*"; }

# quoted COMMAND...: as it could be typed.
quoted() {
    local word line=''
    for word in "$@"; do
        [[ $word =~ ^([A-Za-z0-9_./:@%+=,-]+|[\>\&])$ ]] || word="'${word//\'/\'\\\'\'}'"
        line+="${line:+ }$word"
    done
    printf '%s' "$line"
}

need_root() {
    [[ $EUID -eq 0 ]] || die "needs root, for $1; run it as root"
}

# need_packages COMMAND:PACKAGE...
# Installs the Debian package of every command that is not there. Without root it
# names them and stops. A path in place of the command asks for that file.
need_packages() {
    local pair command missing=()
    for pair in "$@"; do
        command=${pair%%:*}
        if [[ $command == /* ]]; then
            [[ -e $command ]] || missing+=("${pair#*:}")
        else
            command -v "$command" >/dev/null || missing+=("${pair#*:}")
        fi
    done
    [[ ${#missing[@]} -gt 0 ]] || return 0
    mapfile -t missing < <(printf '%s\n' "${missing[@]}" | sort -u)
    [[ $EUID -eq 0 ]] || die "missing Debian packages: ${missing[*]} (apt-get install them, or run as root)"
    command -v apt-get >/dev/null || die "missing: ${missing[*]}, and there is no apt-get to install them with"
    note "installing ${missing[*]}"
    local log
    log=$(mktemp)
    if ! { apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        die "could not install ${missing[*]}"
    fi
    rm -f "$log"
}

# The Rust toolchain is not Debian's (too old there) and is never downloaded by a
# script of ours; sudo drops it from PATH, so the usual places are tried too.
need_cargo() {
    local home
    if ! command -v cargo >/dev/null; then
        for home in "${HOME:-/root}" "$(home_of "${SUDO_USER:-root}")"; do
            if [[ -x $home/.cargo/bin/cargo ]]; then
                PATH=$home/.cargo/bin:$PATH
                # cargo's shim looks for its toolchain under the owner's home.
                export RUSTUP_HOME=${RUSTUP_HOME:-$home/.rustup} CARGO_HOME=${CARGO_HOME:-$home/.cargo}
                break
            fi
        done
    fi
    command -v cargo >/dev/null ||
        die "cargo is missing: install Rust $(rust_version) or later (https://rustup.rs)"
}

home_of() { getent passwd "$1" | cut -d: -f6; }

rust_version() {
    sed -n 's/^rust-version = "\(.*\)"$/\1/p' "$ROOT/Cargo.toml"
}

# build_release: builds the gateway in release mode and sets PORTCULLIS_BIN,
# unless the caller brought a binary in PORTCULLIS_BIN already.
build_release() {
    if [[ -n ${PORTCULLIS_BIN:-} ]]; then
        [[ -x $PORTCULLIS_BIN ]] || die "PORTCULLIS_BIN=$PORTCULLIS_BIN is not an executable"
        PORTCULLIS_BIN=$(realpath -- "$PORTCULLIS_BIN")
        export PORTCULLIS_BIN
        note "using $PORTCULLIS_BIN"
        return 0
    fi
    need_cargo
    note "building portcullis in release mode (the first time takes a few minutes)"
    cargo_as_owner build --quiet --locked --release --package portcullis --bin portcullis || die "the build failed"
    export PORTCULLIS_BIN=$TARGET_DIR/release/portcullis
}

# cargo_as_owner ARGUMENT...: cargo in the checkout. Under sudo the checkout is
# somebody's own: they build it, so that it stays theirs.
cargo_as_owner() {
    local as_owner=()
    if [[ $EUID -eq 0 && -n ${SUDO_USER:-} && $(stat -c %U -- "$ROOT") == "$SUDO_USER" && $SUDO_USER != root ]]; then
        as_owner=(runuser -u "$SUDO_USER" -- env "HOME=$(home_of "$SUDO_USER")" "PATH=$PATH")
    fi
    (cd -- "$ROOT" && "${as_owner[@]}" cargo "$@")
}

# wait_for SECONDS COMMAND...: until COMMAND succeeds; its output is thrown away.
wait_for() {
    local deadline=$((SECONDS + $1))
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || return 1
        sleep 0.05
    done
}

# Milliseconds on a clock good enough for showing a duration.
now_ms() {
    local now=${EPOCHREALTIME/[.,]/}
    printf '%s' "${now%???}"
}
