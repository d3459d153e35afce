# What people and CI run. Each target sets up what it needs; all may be run again.
.DEFAULT_GOAL := help
.PHONY: help setup build demo run test chaos bench lint clean
MAKEFLAGS += --no-print-directory

help: ## Print this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1	\2/p' $(firstword $(MAKEFILE_LIST)) | expand -t 15

setup: ## Install what is missing: SoftHSM, QEMU's tools, a C compiler
	@softhsm/setup.sh

build: setup ## Build rootkeyd and rootkeyctl
	cargo build --locked --bins

demo: build ## Play the life of two encrypted volumes, from key to deletion
	@examples/volume-demo.sh

# The dev profile: its dependencies are optimized, and it builds much faster.
run: build ## Serve on 127.0.0.1:8443 with everything in ./dev
	target/debug/rootkeyd dev --dir ./dev

test: ## Run all tests
	@softhsm/setup.sh --test --python --boot
	cargo build --locked --bins
	cargo nextest run --locked

chaos: ## Kill, break and fill everything, for hours; CHAOS=5% for a part of it
	@softhsm/setup.sh --test --python --boot
	cargo build --locked --bins
	@tests/chaos.sh

# How many keys it measures; more take longer (docs/performance.md).
KEYS ?= 10 1000 10000
WRAPPED_KEYS ?= 10 1000 100000

bench: ## Measure, for a quarter of an hour; leaves target/bench/latest.json and plots
	@softhsm/setup.sh --python
	cargo build --locked --release --bins --example chaos_pkcs11
	cargo bench --locked --bench load
	cargo bench --locked --bench hot_path
	@.venv/bin/python benches/many_keys.py --daemon target/release/rootkeyd \
		--keys $(KEYS) --json target/bench/keys.json
	@.venv/bin/python benches/many_keys.py --daemon target/release/rootkeyd \
		--residency wrapped --keys $(WRAPPED_KEYS) --json target/bench/wrapped_keys.json
	@.venv/bin/python benches/many_registrations.py --daemon target/release/rootkeyd \
		--json target/bench/registrations.json
	cargo bench --locked --bench growth
	@.venv/bin/python benches/noisy_neighbour.py --daemon target/release/rootkeyd \
		--json target/bench/noisy_neighbour.json
	@python3 benches/collect.py > target/bench/latest.json.new
	@mv target/bench/latest.json.new target/bench/latest.json
	@echo "the figures are in target/bench/latest.json, the plots in latest.svg and growth.svg beside it"

lint: ## Check format, lints and documentation
	@softhsm/setup.sh --lint
	cargo fmt --check
	cargo clippy --locked --all-targets -- -D warnings
	RUSTDOCFLAGS=-Dwarnings cargo doc --locked --no-deps --document-private-items
	@if command -v systemd-analyze >/dev/null; then systemd-analyze security \
		--offline=true --threshold=15 systemd/rootkeyd.service >/dev/null; fi

clean: ## Remove what was built; ./dev stays
	rm -rf target .venv
