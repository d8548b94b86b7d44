# make run · make relay · make test · make bench · make fuzz · make soak: each installs what it needs and does the whole job.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help run relay test bench fuzz soak setup setup-build

help:
	@echo "make run    build everything, start both servers and a lab around them, watch a phone wake and a call pass (Ctrl-C ends)"
	@echo "make relay  a TURN relay on this machine's addresses, and what to paste into a browser (Ctrl-C ends)"
	@echo "make test   every check: format, lints, licences, unit, end-to-end and foreign-peer tests"
	@echo "make bench  speed and memory, each figure beside a reference of the same run"
	@echo "make soak   a hundred kills under load, five minutes of faults in one answer of twenty, a call of eleven minutes (an hour)"
	@echo "make fuzz   every fuzz target for FUZZ_SECONDS (default 60) seconds"

setup:
	@.ci/setup

# Without the foreign clients and servers that tests speak to.
setup-build:
	@.ci/setup build

run: setup-build
	cargo build --release --bin quietline-notifier --bin quietline-turn --bin quietline-lab
	target/release/quietline-lab run

RELAY = target/release/quietline-turn
relay: setup-build
	cargo build --release --bin quietline-turn
	@$(RELAY) setup --folder run/relay
	@$(RELAY) check --settings run/relay/turn.toml || echo "(the relay is started all the same)"
	@echo && echo "ICE servers for a browser (README.md, \"A relay for your browser\", says how to try them):" && echo
	@$(RELAY) credentials --settings run/relay/turn.toml
	@echo && echo "The relay runs until Ctrl-C; live calls may go on until a second one." && echo
	@trap : INT; $(RELAY) run --settings run/relay/turn.toml

test: setup
	.ci/check

bench: setup
	cargo build --release --bin quietline-notifier --bin quietline-turn --bin quietline-lab
	cargo bench --workspace

soak: setup
	cargo build --release --bin quietline-notifier --bin quietline-turn --bin quietline-lab
	KILLS=100 cargo test --release -p quietline-lab --test kills -- --nocapture
	FAULTS_SECONDS=300 cargo test --release -p quietline-lab --test faults -- --nocapture
	for run in $$(seq 10); do cargo test --release -p quietline-lab --test browser -- every_way --nocapture || exit 1; done
	CALL_SECONDS=660 cargo test --release -p quietline-lab --test browser -- outlives --nocapture

FUZZ_SECONDS ?= 60
# The fuzzer's instrumentation is not stable yet: RUSTC_BOOTSTRAP lets the stable compiler make it, for this command only.
# What the fuzzer invents goes to target/corpus; an input worth keeping is copied to corpus/ by hand.
fuzz: setup
	@[ -x target/tools/bin/cargo-fuzz ] || cargo install cargo-fuzz --locked --root target/tools
	cd tests/fuzz && export PATH="$(CURDIR)/target/tools/bin:$$PATH" RUSTC_BOOTSTRAP=1 && \
	for target in $$(cargo fuzz list); do \
	  echo "── $$target" && mkdir -p target/corpus/$$target && \
	  cargo fuzz run $$target target/corpus/$$target corpus/$$target -- \
	    -max_total_time=$(FUZZ_SECONDS) -rss_limit_mb=2048 -timeout=10 || exit 1; done
