#!/usr/bin/env bash
# The life of two encrypted volumes under one root key, with real storage: QEMU makes
# and opens LUKS volumes, and the passphrase of each is a DEK that only rootkeyd can
# unwrap. Every claim is checked; the first that does not hold ends the run.
#
# A DEK goes from rootkeyctl to QEMU through a pipe: it is never an argument, an
# environment variable or a file.
set -euo pipefail

usage() {
    cat <<'TEXT'
Usage: examples/volume-demo.sh [--dir DIR]

  --dir DIR  keep everything in DIR, which must be empty or not exist;
             otherwise a temporary directory is used and removed
  ROOTKEYD, ROOTKEYCTL in the environment name other binaries than target/debug's
TEXT
}

CRN=crn:v1:rootkeyd:public:is:local:a/demo::volume:
SIZE=16M      # of a volume
PART=64k      # of it is written and read
PATTERN=0xa5  # is written
DEADLINE=30   # seconds that we wait for anything

main() {
    root=$(cd "$(dirname "$0")/.." && pwd)
    dir='' keep='' daemon='' attached='' log='' checks=0 step=0 status=0 output=''
    while [ $# -gt 0 ]; do
        case $1 in
            --dir) [ $# -gt 1 ] || stop "--dir needs a directory"; dir=$2 keep=yes && shift ;;
            -h | --help) usage && exit 0 ;;
            *) usage >&2 && stop "there is no option $1" ;;
        esac
        shift
    done
    bold='' green='' dim='' plain=''
    if [ -t 1 ]; then bold=$'\e[1m' green=$'\e[32m' dim=$'\e[2m' plain=$'\e[0m'; fi
    PATH=$PATH:/usr/sbin:/sbin
    prepare
    start_daemon

    create_the_key
    provision_two_volumes
    attach_them
    disable_the_key
    enable_the_key
    rotate_the_key
    swap_wrapped_deks
    delete_the_key
    read_the_audit_log
    stop_daemon

    printf '\n%sdemo: all %d checks passed%s\n' "$green" "$checks" "$plain"
}

# --- the story ---------------------------------------------------------------

create_the_key() {
    title "An administrator creates a root key. Its material stays in the HSM."
    run ctl key create --name "Key of the volumes" --alias volumes
    check "the key is created" succeeded
    run ctl key get volumes
    check "the key is found by its alias" says volumes
}

provision_two_volumes() {
    title "The storage service provisions two LUKS volumes; each gets a DEK of its own."
    local volume
    for volume in vol-1 vol-2; do
        run_secret storage generate volumes --size 32 --dek-format hex --out - \
            --wrapped "$volumes/$volume.wrapped" --aad "$CRN$volume" --resource "$CRN$volume"
        check "a DEK for $volume is generated; its wrapped form is beside the volume" \
            new_dek "$volume"
        run format_luks "$volume"
        check "$volume is formatted with it" succeeded
        run with_dek qemu_io "$volume" -c "write -P $PATTERN 0 $PART"
        check "data is written to $volume" says "wrote 65536/65536"
        run with_dek cryptsetup open --test-passphrase --type luks --key-file /dev/fd/7 \
            "$volumes/$volume.luks"
        check "cryptsetup too opens $volume with the DEK" succeeded
        run nothing_in_clear "$volume"
        check "neither the data nor the DEK of $volume is on disk in the clear" succeeded
    done
    dek=''
}

attach_them() {
    title "Attach: the service unwraps the DEK and opens the volume. Volume 1 stays attached."
    unwrap vol-1 "$CRN"vol-1
    check "the DEK of vol-1 is unwrapped" has_dek
    attach_for_good vol-1
    check "vol-1 is attached and its data is intact" attached_volume_reads
    attach vol-2
    check "vol-2 is attached, its data is intact, and it is detached again" data_is_intact
    run with_wrong_dek qemu_io vol-2 -c "read 0 $PART"
    check "any other passphrase is refused by the volume itself" \
        refused_with "Invalid password, cannot unlock any keyslot"
}

disable_the_key() {
    title "The key is disabled: nothing new can be attached, what is attached goes on."
    run ctl key disable volumes
    check "the key is disabled" succeeded
    unwrap vol-2 "$CRN"vol-2
    check "vol-2 cannot be attached" refused_with KEY_SUSPENDED
    check "the refusal says what the resource's status is due to" \
        refused_with status_reason=encryption_key_disabled
    run storage generate volumes --size 32 --dek-format hex --out - \
        --wrapped "$volumes/vol-3.wrapped" --aad "$CRN"vol-3 --resource "$CRN"vol-3
    check "no volume can be provisioned" refused_with KEY_SUSPENDED
    check "vol-1 is still attached and reads" attached_volume_reads
}

enable_the_key() {
    title "The key is enabled again, but not before 30 seconds have passed."
    run ctl key enable volumes
    check "at once is too early" refused_with TOO_EARLY
    set_clock +31s
    say "the test clock of the daemon is put forward by 31 s"
    run ctl key enable volumes
    check "31 s later the key is enabled" succeeded
    attach vol-2
    check "vol-2 is attached, and its data is intact" data_is_intact
}

rotate_the_key() {
    title "The key is rotated: old wrapped DEKs still work, and come back under the new version."
    run ctl key rotate volumes
    check "the key is rotated" succeeded
    attach vol-2 --rewrapped "$volumes/vol-2.rewrapped"
    check "vol-2 is attached with the DEK that the old version wrapped" data_is_intact
    check "the same DEK came back, wrapped by the new version" \
        differ "$volumes/vol-2.rewrapped" "$volumes/vol-2.wrapped"
    mv "$volumes/vol-2.rewrapped" "$volumes/vol-2.wrapped"
    say "the service stores it in place of the old one"
    attach vol-2 --rewrapped "$volumes/vol-2.again"
    check "vol-2 is attached with it" data_is_intact
    check "and now nothing is rewrapped" test ! -s "$volumes/vol-2.again"
}

swap_wrapped_deks() {
    title "Somebody puts the wrapped DEK of volume 1 in the place of volume 2's."
    unwrap vol-1 "$CRN"vol-2
    check "it does not unwrap for another volume's CRN" refused_with CIPHERTEXT_UNVERIFIED
}

delete_the_key() {
    title "The key is deleted: its volumes cannot be attached any more."
    run ctl key delete volumes --yes
    check "the key is deleted" succeeded
    unwrap vol-2 "$CRN"vol-2
    check "vol-2 cannot be attached" refused_with KEY_DESTROYED
    check "the refusal says what the resource's status is due to" \
        refused_with status_reason=encryption_key_deleted
    check "vol-1 still reads: to stop it is the service's part, nobody can take a DEK back" \
        attached_volume_reads
    detach_for_good
    check "vol-1 is detached" succeeded
    unwrap vol-1 "$CRN"vol-1
    check "and cannot be attached again" refused_with KEY_DESTROYED
}

read_the_audit_log() {
    title "The audit log has it all, the refusals too."
    run ctl audit list --output json
    check "the log is read" succeeded
    local reason
    for reason in KEY_SUSPENDED:2 TOO_EARLY:1 CIPHERTEXT_UNVERIFIED:1 KEY_DESTROYED:2; do
        check "refusals with ${reason%:*}: ${reason#*:}" occurs "${reason#*:}" "\"${reason%:*}\""
    done
    check "the CRN of vol-2 is in it" says "${CRN}vol-2"
}

# --- the daemon and its client -----------------------------------------------

prepare() {
    rootkeyd=${ROOTKEYD:-$root/target/debug/rootkeyd}
    rootkeyctl=${ROOTKEYCTL:-$root/target/debug/rootkeyctl}
    local tool
    for tool in "$rootkeyd" "$rootkeyctl"; do
        command -v "$tool" >/dev/null || stop "$tool is not there: build it with \`make build\`"
    done
    for tool in qemu-img qemu-io cryptsetup; do
        command -v "$tool" >/dev/null || stop "$tool is not there: install it with \`make setup\`"
    done
    trap clean_up EXIT
    trap : PIPE # of a QEMU that has gone: the check that follows says so
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    if [ -z "$dir" ]; then
        dir=$(mktemp -d "${TMPDIR:-/tmp}/rootkeyd-demo.XXXXXX")
    else
        mkdir -p "$dir"
        dir=$(cd "$dir" && pwd)
        [ -z "$(ls -A "$dir")" ] || stop "$dir is not empty, and the demonstration needs a fresh daemon"
    fi
    volumes=$dir/volumes clock=$dir/clock log=$dir/demo.log
    export ROOTKEYCTL_CONFIG=$dir/client.toml
    umask 077
    mkdir "$volumes"
    set_clock system
}

start_daemon() {
    title "The daemon starts; on first use it makes a token, a store and certificates."
    show rootkeyd dev --dir DIR --listen 127.0.0.1:0 --test-clock DIR/clock
    "$rootkeyd" dev --dir "$dir" --listen 127.0.0.1:0 --test-clock "$clock" >"$log" 2>"$log.err" &
    daemon=$!
    check "it listens" wait_until daemon_listens
    say "$(grep -m 1 'listening on' "$log")"
}

daemon_listens() {
    if grep -q 'listening on' "$log"; then return; fi
    kill -0 "$daemon" 2>/dev/null || status=99 output='(it has ended)'
    return 1
}

stop_daemon() {
    title "The daemon drains and stops."
    kill -TERM "$daemon"
    check "it stops in time" wait_until daemon_is_gone
    status=0 output='(see its log)'
    wait "$daemon" || status=$?
    daemon=''
    check "and without an error" succeeded
}

daemon_is_gone() { ! kill -0 "$daemon" 2>/dev/null; }

ctl() { "$rootkeyctl" "$@"; }
storage() { "$rootkeyctl" --identity block-storage "$@"; }

# What `system`, `+31s` or an RFC 3339 time says is the daemon's time from now on.
set_clock() {
    printf '%s\n' "$1" >"$clock.new"
    mv "$clock.new" "$clock"
}

# --- volumes -----------------------------------------------------------------

# Sets `dek`, or what the refusal says.
unwrap() { # VOLUME AAD OPTION...
    local volume=$1 aad=$2
    shift 2
    run_secret storage unwrap volumes --in "$volumes/$volume.wrapped" --out - --dek-format hex \
        --aad "$aad" --resource "$aad" "$@"
}

# Unwraps the DEK, opens the volume, compares what it holds, closes it.
attach() { # VOLUME UNWRAP-OPTION...
    local volume=$1
    shift
    unwrap "$volume" "$CRN$volume" "$@"
    if [ "$status" -ne 0 ]; then return; fi
    run with_dek qemu_io "$volume" -c "read -P $PATTERN 0 $PART"
    dek=''
}

# QEMU holds the volume open until detach_for_good, and takes commands meanwhile.
attach_for_good() { # VOLUME
    show qemu-io "$1" "(stays" "open)"
    attached_volume=$1
    coproc ATTACHED { with_dek qemu_io "$attached_volume" 2>&1; }
    attached=$ATTACHED_PID to_attached=${ATTACHED[1]} from_attached=${ATTACHED[0]}
    dek=''
}

attached_volume_reads() {
    local line
    status=0 output=''
    show qemu-io "$attached_volume" -c "read -P $PATTERN 0 $PART"
    printf 'read -P %s 0 %s\n' "$PATTERN" "$PART" >&"$to_attached" || return
    while read -r -t "$DEADLINE" -u "$from_attached" line; do
        output+=$line$'\n'
        case $line in *' ops; '*) break ;; esac
    done
    data_is_intact
}

detach_for_good() {
    show qemu-io "$attached_volume" -c quit
    printf 'quit\n' >&"$to_attached"
    status=0 output=''
    wait "$attached" || status=$?
    attached=''
}

# Debian 12's own QEMU (7.2) times its key derivation by the CPU time that the kernel
# counts in ticks, and gives up if it finds none. It can be asked again; SHA-512 takes
# longer, so that it seldom has to be.
format_luks() { # VOLUME
    local attempt said
    for attempt in 1 2 3 4 5; do
        rm -f "$volumes/$1.luks"
        if said=$(with_dek qemu-img create -q -f luks --object secret,id=dek,file=/dev/fd/7 \
            -o key-secret=dek,iter-time=50,hash-alg=sha512 "$volumes/$1.luks" "$SIZE" 2>&1); then
            return
        fi
        if [[ $said != *"accurate CPU usage"* ]]; then break; fi
    done
    printf '%s (attempt %d)\n' "$said" "$attempt"
    return 1
}

# Opens a LUKS volume with the DEK that comes by file descriptor 7.
qemu_io() { # VOLUME ARGUMENT...
    local volume=$1
    shift
    qemu-io --object secret,id=dek,file=/dev/fd/7 \
        --image-opts "driver=luks,key-secret=dek,file.filename=$volumes/$volume.luks" "$@"
}

# printf is the shell's own, so the DEK is in no process's arguments.
with_dek() { "$@" 7< <(printf '%s' "$dek"); }
with_wrong_dek() { "$@" 7< <(printf '%064d' 0); }

# Neither the data in the volume, nor the DEK in any file that we or the daemon made.
nothing_in_clear() { # VOLUME
    local found=0
    LC_ALL=C grep -qaP '\xa5{16}' "$volumes/$1.luks" || found=$?
    if [ "$found" -ne 1 ]; then echo "the data is in $1.luks" && return 1; fi
    found=0
    grep -rlaF -D skip -f <(printf '%s' "$dek") "$dir" || found=$?
    if [ "$found" -ne 1 ]; then echo "the DEK is in a file" && return 1; fi
}

# --- checks ------------------------------------------------------------------

# Runs a command and keeps what it said and its status.
run() { # COMMAND...
    show "$@"
    status=0
    output=$("$@" 2>&1) || status=$?
    show_refusal
}

# The same with a DEK on standard output, which is kept and not shown.
run_secret() { # COMMAND...
    show "$@"
    status=0
    dek=$("$@" 2>"$dir/stderr") || status=$?
    output=$(cat "$dir/stderr")
    rm "$dir/stderr"
    show_refusal
}

show_refusal() {
    if [ "$status" -ne 0 ]; then printf '   %s%s%s\n' "$dim" "${output%%$'\n'*}" "$plain"; fi
}

# What each check asks of the last command; the reader sees the sentence.
check() { # SENTENCE TEST...
    local sentence=$1
    shift
    checks=$((checks + 1))
    if "$@"; then
        printf '   %s✔ %d%s %s\n' "$green" "$checks" "$plain" "$sentence"
        return
    fi
    {
        printf '\ndemo: check %d failed: %s\n' "$checks" "$sentence"
        printf 'demo: asked was: %s; the last command ended with %s and said:\n' "$*" "$status"
        printf '%s\n' "${output:-(nothing)}"
        if [ -s "$log.err" ]; then
            printf 'demo: the last lines of the log of the daemon:\n'
            tail -n 15 "$log.err"
        fi
    } >&2
    exit 1
}

succeeded() { [ "$status" -eq 0 ]; }
says() { succeeded && [[ $output == *"$1"* ]]; }
refused_with() { [ "$status" -eq 1 ] && [[ $output == *"$1"* ]]; }
has_dek() { succeeded && [[ $dek =~ ^[0-9a-f]{64}$ ]]; }
new_dek() { has_dek && [ -s "$volumes/$1.wrapped" ]; }
data_is_intact() { says "read 65536/65536" && [[ $output != *"verification failed"* ]]; }
differ() { [ -s "$1" ] && ! cmp -s "$1" "$2"; }
occurs() { [ "$(grep -oF "$2" <<<"$output" | wc -l)" -eq "$1" ]; }

wait_until() { # TEST...
    local end=$((SECONDS + DEADLINE))
    until "$@"; do
        if [ $SECONDS -ge $end ] || [ "$status" -eq 99 ]; then return 1; fi
        sleep 0.05
    done
}

# --- words -------------------------------------------------------------------

title() {
    step=$((step + 1))
    printf '\n%s%d. %s%s\n' "$bold" "$step" "$1" "$plain"
}

say() { printf '   %s\n' "$*"; }

# The gist of a command: no paths, no more than the end of a CRN, none of our functions.
show() { # COMMAND...
    local words='' word
    for word in "$@"; do
        case $word in
            nothing_in_clear) return ;;
            with_dek | with_wrong_dek) continue ;;
            ctl) word=rootkeyctl ;;
            storage) word='rootkeyctl --identity block-storage' ;;
            qemu_io) word=qemu-io ;;
            format_luks) word='qemu-img create -f luks -o key-secret=dek' ;;
            "$volumes"/*) word=${word#"$volumes"/} ;;
            "$CRN"*) word=crn:…:${word#"$CRN"} ;;
            *' '*) word="'$word'" ;;
        esac
        words+=" $word"
    done
    printf '   %s$%s%s\n' "$dim" "$words" "$plain"
}

stop() {
    printf 'demo: %s\n' "$*" >&2
    exit 1
}

clean_up() {
    local code=$?
    trap - EXIT
    trap '' INT TERM HUP
    if [ -n "$attached" ]; then kill "$attached" 2>/dev/null || true; fi
    if [ -n "$daemon" ]; then
        kill -TERM "$daemon" 2>/dev/null || true
        status=0
        wait_until daemon_is_gone || kill -KILL "$daemon" 2>/dev/null || true
    fi
    if [ -z "$keep" ] && [ -n "$dir" ]; then rm -rf "$dir"; fi
    exit "$code"
}

main "$@"
