# Everything that people do with this repository. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

# Arguments of some targets.
URL ?=
SIZE ?=
PEERS ?=
RUNS ?= 5
BENCH ?= swarm
NODES ?= 2
FAMILY ?= ipv4
SECONDS ?= 60
MINUTES ?= 5
SEED ?=
HOMEPAGE ?=
VERSION ?= v$(shell sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml)

.PHONY: help
help: ## What there is
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

.PHONY: setup
setup:
	@scripts/setup.sh test cluster

.PHONY: build
build: ## The binaries, optimised: target/release/dragonfly, kubectl-dragonfly
	@scripts/setup.sh
	cargo build --release -p dragonfly -p dragonfly-kubectl

.PHONY: demo
demo: ## Distribute real files among real peers on this machine (URL=, SIZE=, PEERS=)
	@scripts/setup.sh
	cargo build --release -p dragonfly -p dragonfly-e2e
	target/release/demo $(if $(URL),--url '$(URL)') $(if $(SIZE),--size $(SIZE)) $(if $(PEERS),--peers $(PEERS))

.PHONY: soak
soak: ## Load and random faults over real processes for MINUTES=5 (SEED= repeats the choices of an earlier one)
	@scripts/setup.sh
	cargo build --release -p dragonfly -p dragonfly-e2e
	target/release/soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

# One selection of packages for all, with one set of features: everything is compiled once.
tests_of = $(notdir $(patsubst %/main.rs,%,$(wildcard $(1)/*/main.rs)) $(basename $(wildcard $(1)/*.rs)))
tests_in = $(patsubst %,--test %,$(sort $(foreach dir,$(1),$(call tests_of,$(dir)))))
CLUSTER_TESTS = $(call tests_in,e2e/cluster/tests)
OTHER_TESTS = $(call tests_in,crds/tests e2e/tests $(wildcard dataplane/*/tests operator/*/tests))
CLUSTER_TOOLS = api-server kubernetes containerd pause helm kwok lua

# Kubernetes is built from its modules while tests run that wait for one another rather than for the processor.
.PHONY: test
test: setup ## All tests that are quick; needs Rust and Go on a Debian, and root for a real Kubernetes
	cargo build --locked --workspace --bins --tests
	nice -n 19 target/debug/cluster build $(CLUSTER_TOOLS) >/dev/null & tools=$$!; \
		cargo test --locked --workspace --lib --bins $(OTHER_TESTS) || { kill $$tools; exit 1; }; \
		wait $$tools
	cargo test --locked --workspace $(CLUSTER_TESTS)
	cargo test --locked --workspace --doc
	cargo test --locked --workspace --test python -- --ignored

.PHONY: test-full
test-full: test arm64 ## make test, then what takes long: simulated scenarios, throughput, a thousand nodes, arm64, other versions of Kubernetes
	@scripts/setup.sh containers
	cargo build --release -p dragonfly
	cargo test --release -p dragonfly-swarm -- --ignored --nocapture
	cargo test --release -p dragonfly-storage --test throughput -- --ignored --nocapture
	target/release/dragonfly simulate --peers 5000 --scenario equal
	cargo test --locked --workspace $(CLUSTER_TESTS) -- --ignored --nocapture
	for api in oldest-api-server newest-api-server; do \
		at=$$(target/debug/cluster build $$api | grep -o '/.*/kube-apiserver'); \
		KUBEBUILDER_ASSETS=$${at%/*} cargo test --locked --workspace --test meshes operator:: -- \
			--skip life:: --skip shapes:: --skip external::; \
	done

.PHONY: arm64
arm64: ## The binaries for 64-bit ARM, cross-compiled, to be tested
	@scripts/setup.sh arm64
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
		cargo build --locked -p dragonfly -p dragonfly-operator --target aarch64-unknown-linux-gnu

.PHONY: krew
krew: ## What krew installs kubectl dragonfly from: target/krew (URL= of the archives, HOMEPAGE=, VERSION=)
	@scripts/setup.sh arm64
	cargo build --release --locked -p dragonfly-kubectl --target x86_64-unknown-linux-gnu
	CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc \
		cargo build --release --locked -p dragonfly-kubectl --target aarch64-unknown-linux-gnu
	scripts/krew.sh target/krew '$(VERSION)' '$(HOMEPAGE)' '$(URL)' \
		amd64=target/x86_64-unknown-linux-gnu/release arm64=target/aarch64-unknown-linux-gnu/release

.PHONY: cluster
cluster: ## A real Kubernetes that stays, with the data plane's image in its registry (NODES=, FAMILY=)
	@scripts/setup.sh cluster
	cargo build --locked -p dragonfly -p dragonfly-operator -p dragonfly-kubectl -p dragonfly-cluster
	@target/debug/cluster up --nodes $(NODES) --family $(FAMILY) --images

.PHONY: cluster-down
cluster-down: ## Take down what `make cluster` started
	@target/debug/cluster down

.PHONY: e2e
e2e: ## The tests on a real Kubernetes alone
	@scripts/setup.sh cluster
	cargo build --locked --workspace --bins --tests
	cargo test --locked --workspace $(CLUSTER_TESTS)

# The operator's bench needs a Kubernetes.
BENCH_MORE = $(if $(filter control,$(BENCH)),-p dragonfly-operator -p dragonfly-cluster)

.PHONY: bench-setup
bench-setup:
	@scripts/setup.sh bench $(if $(filter control images,$(BENCH)),cluster)
	cargo build --release -p dragonfly -p dragonfly-e2e $(BENCH_MORE)
	@test -x target/bench-python/bin/python || python3 -m venv target/bench-python
	@target/bench-python/bin/pip install --quiet libtorrent==2.0.11

# The data plane of Dragonfly 2, which takes a quarter of an hour to build: compared with where it is there.
DRAGONFLY_CLIENT_VERSION = 1.5.10
DRAGONFLY_CLIENT = $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/dragonfly-e2e/dragonfly-client-$(DRAGONFLY_CLIENT_VERSION)

.PHONY: dragonfly-client
dragonfly-client: ## Build dragonfly-client, once, for `make bench` to compare with
	@scripts/setup.sh dragonfly-client
	cargo install --locked --root $(DRAGONFLY_CLIENT) dragonfly-client@$(DRAGONFLY_CLIENT_VERSION)

BENCH_RUN = BENCH_BUILD=$$(git describe --always --dirty 2>/dev/null) \
	BENCH_PYTHON=$(CURDIR)/target/bench-python/bin/python \
	BENCH_DRAGONFLY_CLIENT=$(DRAGONFLY_CLIENT)/bin target/release/bench

.PHONY: bench
bench: bench-setup ## Compare with other systems; writes docs/benchmarks.md (needs root; BENCH=, RUNS=)
	$(BENCH_RUN) $(BENCH) --runs $(RUNS)

.PHONY: bench-full
bench-full: bench-setup dragonfly-client ## All regimes of the bench
	$(BENCH_RUN) swarm --full --runs $(RUNS)

.PHONY: crds
crds: ## Write config/crd from the types
	cargo run --locked -p dragonfly-crds --features crdgen --bin crdgen

.PHONY: lint
lint: ## Formatting, clippy, documentation
	cargo fmt --all -- --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS='-D warnings' cargo doc --locked --workspace --no-deps --quiet

.PHONY: presubmit
presubmit: lint test ## What a change must pass

.PHONY: fuzz
fuzz: ## Run each fuzz target for SECONDS=60 (needs: rustup toolchain install nightly, cargo install cargo-fuzz)
	@for crate in dataplane/proto crds dataplane/storage dataplane/mirror; do \
		cd $(CURDIR)/$$crate/fuzz; \
		for target in $$(cargo +nightly fuzz list); do \
			echo "$$crate: $$target"; \
			cargo +nightly fuzz run $$target -- -max_total_time=$(SECONDS) -verbosity=0 -print_final_stats=1; \
		done; \
	done

.PHONY: clean
clean: ## Remove what was built
	cargo clean
