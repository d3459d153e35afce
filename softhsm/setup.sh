#!/usr/bin/env bash
# Installs what is missing to build, run and test rootkeyd on Debian 12: SoftHSM 2 as
# the HSM, QEMU's and cryptsetup's tools as the storage, and what Rust needs to build.
#
# May be run as often as you like; it does nothing where nothing is missing, and it
# removes nothing. Package lists, the Python index and crates.io are used as this
# machine is set up to use them; no address is written here.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: softhsm/setup.sh [--lint] [--test] [--python] [--boot] [--check]

Installs what is missing to build and run rootkeyd and its demonstration.
  --lint    ask for rustfmt and clippy too
  --test    install cargo-nextest too
  --python  make .venv with tests/python/requirements.txt too
  --boot    bring what boots a virtual server too: QEMU, and in target/boot a kernel
            of Debian's and busybox
  --check   install nothing; say what is missing, and exit 1 if something is
TEXT
}

# Any version that is here is taken; this one is installed where there is none. It
# builds with every compiler that rootkeyd itself builds with.
NEXTEST_VERSION=0.9.128

main() {
    cd "$(dirname "$0")/.."
    local lint='' test='' python='' boot=''
    check='' missing=0
    while [ $# -gt 0 ]; do
        case $1 in
            --lint) lint=yes ;;
            --test) test=yes ;;
            --python) python=yes ;;
            --boot) boot=yes ;;
            --check) check=yes ;;
            -h | --help) usage && exit 0 ;;
            *) usage >&2 && fail "there is no option $1" ;;
        esac
        shift
    done
    # cryptsetup is in a folder that only root has in PATH; cargo's is not in sudo's.
    PATH=$PATH:/usr/sbin:/sbin:${CARGO_HOME:-$HOME/.cargo}/bin

    system_packages "$python"
    if [ -n "$boot" ]; then
        virtual_machine
        kernel_and_busybox
    fi
    rust_toolchain "$lint"
    if [ -n "$test" ]; then nextest; fi
    if [ -n "$python" ]; then python_environment; fi

    if [ "$missing" -gt 0 ]; then exit 1; fi
    if [ -n "$check" ]; then say "nothing is missing"; fi
}

# What is needed, how to see that it is there, and Debian's packages that bring it.
system_packages() { # PYTHON?
    local packages=()
    need() { # PACKAGES WHAT-FOR TEST...
        local names=$1 what_for=$2
        shift 2
        if "$@" >/dev/null 2>&1; then return; fi
        absent "$names ($what_for)"
        # shellcheck disable=SC2206 # several names
        packages+=($names)
    }
    need softhsm2 "the HSM of development and tests" softhsm_is_here
    need qemu-utils "makes and opens the volumes of the demonstration" all_in_path qemu-img qemu-io
    need cryptsetup-bin "opens a volume without QEMU" all_in_path cryptsetup
    # aws-lc-sys, libsqlite3-sys and cryptoki come with bindings and C sources that need
    # a C compiler: no cmake, clang, perl, protoc or pkg-config.
    need "gcc libc6-dev" "C compiler for AWS-LC and SQLite" c_compiles
    need make "the targets of Makefile" all_in_path make
    need ca-certificates "to reach package registries" test -s /etc/ssl/certs/ca-certificates.crt
    if [ -n "$1" ]; then
        need "python3 python3-venv" "the independent client" python3 -c 'import ensurepip, venv'
    fi
    if [ ${#packages[@]} -eq 0 ] || [ -n "$check" ]; then return; fi

    all_in_path apt-get || fail "this is not Debian, so install by hand: ${packages[*]}"
    say "installing ${packages[*]} (Debian packages)"
    as_root apt-get update -qq || fail "apt-get update failed, so ${packages[*]} cannot be installed"
    # --no-remove: Debian's releases of QEMU exclude each other, and apt would replace
    # what somebody chose. So we ask for the release that is here already.
    local i version
    version=$(dpkg-query -W -f '${db:Status-Status} ${Version}\n' qemu-system-common 2>/dev/null |
        sed -n 's/^installed //p') || true
    for i in "${!packages[@]}"; do
        if [ "${packages[i]}" = qemu-utils ] && [ -n "$version" ]; then packages[i]=qemu-utils=$version; fi
    done
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o DPkg::Lock::Timeout=300 \
        --no-install-recommends --no-remove "${packages[@]}" >/dev/null ||
        fail "apt-get could not install ${packages[*]} without removing or replacing something; what it said is above"
    softhsm_is_here || fail "softhsm2 is installed, but libsofthsm2.so is not where it is looked for"
}

# QEMU that boots a virtual server, of the release that QEMU's tools are of: the
# releases exclude each other, so the other one would take the tools away.
virtual_machine() {
    local packages=()
    if ! all_in_path qemu-system-x86_64; then
        absent "qemu-system-x86 (boots a virtual server)"
        packages+=(qemu-system-x86)
    fi
    if ! all_in_path mkfs.ext4; then
        absent "e2fsprogs (makes its file system)"
        packages+=(e2fsprogs)
    fi
    if [ ${#packages[@]} -eq 0 ] || [ -n "$check" ]; then return; fi

    say "installing ${packages[*]} (Debian packages)"
    local options=() version=''
    version=$(dpkg-query -W -f '${db:Status-Status} ${Version}\n' qemu-utils 2>/dev/null |
        sed -n 's/^installed //p') || true
    if [ "${packages[0]}" = qemu-system-x86 ] && [ -n "$version" ]; then
        packages[0]=qemu-system-x86=$version
        case $version in *~bpo*) backports ;; esac
    fi
    as_root apt-get "${options[@]}" update -qq ||
        fail "apt-get update failed, so ${packages[*]} cannot be installed"
    # A point release may have taken that version away; the newer one of the same release
    # brings its tools along.
    if [[ ${packages[0]} == *=* && $version != *~bpo* ]] &&
        ! apt-cache madison qemu-system-x86 | grep -qF " $version "; then
        packages[0]=qemu-system-x86
    fi
    as_root env DEBIAN_FRONTEND=noninteractive apt-get "${options[@]}" install -y -qq \
        -o DPkg::Lock::Timeout=300 --no-install-recommends --no-remove "${packages[@]}" >/dev/null ||
        fail "apt-get could not install ${packages[*]} without removing or replacing something; what it said is above"
}

# QEMU's tools are of backports, and the machine may not be set up to use them any
# more. Then they are asked for on the mirror that it uses, in lists of our own: nothing
# else is upgraded by them, now or later.
backports() { # sets options
    local release mirror dir=$PWD/target/boot/apt
    # shellcheck disable=SC1091 # not there for a checker
    release=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")-backports
    options=(-t "$release")
    if apt-cache policy 2>/dev/null | grep -q "n=$release"; then return; fi
    # shellcheck disable=SC2016 # apt's own
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' 'Codename: '"${release%-backports}" |
        head -n 1) || true
    if [ -z "$mirror" ]; then fail "qemu-utils here is of $release, and no mirror of Debian is set up"; fi
    mkdir -p "$dir/lists/partial"
    printf 'deb %s %s main\n' "$mirror" "${release%-backports}" "$mirror" "$release" >"$dir/sources.list"
    options+=(-o "Dir::Etc::sourcelist=$dir/sources.list" -o Dir::Etc::sourceparts=-
        -o "Dir::State::lists=$dir/lists" -o Dir::Cache::pkgcache= -o Dir::Cache::srcpkgcache=)
}

# Two files out of their packages: to install a kernel would make an initrd and a boot
# entry on this machine, and nothing of it is wanted.
kernel_and_busybox() {
    local dir=target/boot work package
    if [ -s "$dir/vmlinuz" ] && [ -x "$dir/busybox" ]; then return; fi
    absent "$dir/vmlinuz and $dir/busybox"
    if [ -n "$check" ]; then return; fi
    [ "$(dpkg --print-architecture)" = amd64 ] || fail "the virtual server is of amd64, and this is not"
    say "downloading a kernel of Debian's and busybox to $dir"
    mkdir -p "$dir"
    work=$(mktemp -d "$dir/debs.XXXXXX")
    package=$(cloud_kernel)
    if [ -z "$package" ]; then
        as_root apt-get update -qq || fail "apt-get update failed, so no kernel can be downloaded"
        package=$(cloud_kernel)
    fi
    # A list that is old names packages that are gone.
    if ! download "$work" "$package" 2>/dev/null; then
        as_root apt-get update -qq || fail "apt-get update failed, so no kernel can be downloaded"
        package=$(cloud_kernel)
        download "$work" "$package" || fail "$package and busybox-static could not be downloaded"
    fi
    dpkg-deb --fsys-tarfile "$work"/linux-image-*.deb | tar -x -C "$work" --wildcards './boot/vmlinuz-*'
    dpkg-deb --fsys-tarfile "$work"/busybox-static_*.deb | tar -x -C "$work" ./bin/busybox
    mv "$work"/boot/vmlinuz-* "$dir/vmlinuz"
    mv "$work/bin/busybox" "$dir/busybox"
    rm -rf "$work"
}

# linux-image-cloud-amd64 has no files: it names the newest kernel.
cloud_kernel() {
    apt-cache depends linux-image-cloud-amd64 2>/dev/null | sed -n 's/^ *Depends: *\(linux-image-[^ ]*\)$/\1/p' | head -n 1
}

download() { # FOLDER PACKAGE
    (cd "$1" && apt-get -qq -o APT::Sandbox::User=root download "$2" busybox-static)
}

# The compiler is the user's choice (rustup, Debian, …), so it is only looked at.
rust_toolchain() { # LINT?
    local wanted found tool
    wanted=$(sed -n 's/^rust-version *= *"\(.*\)"/\1/p' Cargo.toml)
    for tool in cargo rustc; do
        if ! all_in_path "$tool"; then
            lacking "$tool: install Rust $wanted or newer, for example with rustup"
            return
        fi
    done
    found=$(rustc --version | cut -d ' ' -f 2)
    if ! version_reaches "${found%%-*}" "$wanted"; then
        lacking "Rust $wanted: rustc here is $found; a newer one comes with \`rustup update stable\`"
    fi
    if [ -z "$1" ]; then return; fi
    cargo fmt --version >/dev/null 2>&1 || lacking "rustfmt: install it with \`rustup component add rustfmt\`"
    cargo clippy --version >/dev/null 2>&1 || lacking "clippy: install it with \`rustup component add clippy\`"
}

# Without optimization and without its self-update it builds in a fraction of the time.
nextest() {
    if cargo nextest --version >/dev/null 2>&1; then return; fi
    absent "cargo-nextest, which runs the tests"
    if [ -n "$check" ]; then return; fi
    say "building cargo-nextest $NEXTEST_VERSION, once; this takes some minutes"
    CARGO_PROFILE_DEV_DEBUG=0 cargo install cargo-nextest --version "=$NEXTEST_VERSION" \
        --locked --no-default-features --debug --quiet ||
        fail "cargo-nextest could not be built; what cargo said is above"
}

python_environment() {
    local stamp=.venv/requirements.sha256 wanted
    wanted=$({ cat tests/python/requirements.txt && python3 --version; } | sha256sum)
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    absent ".venv with tests/python/requirements.txt"
    if [ -n "$check" ]; then return; fi
    say "making .venv with tests/python/requirements.txt"
    # Wheels only: to build grpcio takes longer than everything else together.
    if ! { python3 -m venv --clear .venv && .venv/bin/python -m pip install --quiet \
        --disable-pip-version-check --only-binary :all: --requirement tests/python/requirements.txt; }; then
        fail ".venv could not be made; what pip said is above"
    fi
    printf '%s\n' "$wanted" >"$stamp"
}

softhsm_is_here() {
    all_in_path softhsm2-util || return 1
    local path
    for path in /usr/lib/softhsm /usr/lib/*/softhsm /usr/lib64/pkcs11 /usr/local/lib/softhsm; do
        if [ -e "$path/libsofthsm2.so" ]; then return; fi
    done
    return 1
}

c_compiles() {
    printf '#include <stdlib.h>\nint main(void) { return EXIT_SUCCESS; }\n' | cc -x c -o /dev/null -
}

all_in_path() { # NAME...
    local name
    for name in "$@"; do command -v "$name" >/dev/null || return 1; done
}

version_reaches() { # FOUND WANTED
    [ "$(printf '%s\n' "$2" "$1" | sort -V | head -n 1)" = "$2" ]
}

as_root() { # COMMAND...
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif all_in_path sudo; then
        sudo "$@"
    else
        fail "root is needed to install packages, and there is no sudo: run this script as root"
    fi
}

# Of what we install ourselves: only --check has something to say.
absent() { # WHAT
    if [ -z "$check" ]; then return; fi
    say "missing: $1"
    missing=$((missing + 1))
}

# Of what is the user's to install.
lacking() { # WHAT-AND-HOW
    if [ -z "$check" ]; then fail "missing: $1"; fi
    absent "$1"
}

say() { printf 'setup: %s\n' "$*"; }

fail() {
    printf 'setup: %s\n' "$*" >&2
    exit 1
}

main "$@"
