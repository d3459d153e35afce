#!/usr/bin/env bash
# Fuzzes one target with libFuzzer, on stable Rust: fuzz/run.sh TARGET SECONDS.
#
# What is new for the coverage is kept in fuzz/target/found/TARGET, an input that
# crashes in fuzz/target/crash-*. `fuzz/run.sh TARGET minimize` puts the smallest set
# of inputs with the same coverage into fuzz/corpus/TARGET, which `make test` replays.
# Needs a C++ compiler. Everything built is in fuzz/target, or in FUZZ_TARGET_DIR.
set -euo pipefail
cd "$(dirname "$0")"

target=${1:?give a target: a file of fuzz/bin without .rs}
seconds=${2:?give seconds, or minimize}
built=${FUZZ_TARGET_DIR:-$PWD/target}
corpus=$PWD/corpus/$target
found=$built/found/$target
host=$(rustc -vV | sed -n 's/^host: //p')
mkdir -p "$corpus" "$found"

# What cargo-fuzz would say on nightly. The --target keeps it from build scripts.
flags="--cfg fuzzing -Ccodegen-units=1 -Cpasses=sancov-module
    -Cllvm-args=-sanitizer-coverage-level=4
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters
    -Cllvm-args=-sanitizer-coverage-pc-table
    -Cllvm-args=-sanitizer-coverage-trace-compares"
RUSTFLAGS=$(tr -s '\n ' ' ' <<<"$flags") CARGO_TARGET_DIR=$built \
    cargo build --locked --release --target "$host" --bin "$target"
run=("$built/$host/release/$target" -max_len=8192 -timeout=10 -rss_limit_mb=2048)

if [ "$seconds" = minimize ]; then
    # By places in the code and not by how often they are come to: a fraction of the files.
    whole=$(mktemp -d "$built/whole.XXXXXX")
    "${run[@]}" -merge=1 -set_cover_merge=1 -use_counters=0 "$whole" "$corpus" "$found"
    # What has a name was put there by somebody.
    find "$corpus" -type f -regextype posix-extended ! -regex '.*/[0-9a-f]{40}' -exec cp -t "$whole" {} +
    rm -rf "$corpus" && mv "$whole" "$corpus" && chmod 755 "$corpus"
else
    "${run[@]}" -max_total_time="$seconds" -artifact_prefix="$built/crash-$target-" \
        -print_final_stats=1 "$found" "$corpus"
fi
