# Bare `make` prints what it can do.
SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/local/go/bin

# What is built is one static binary; the race detector alone needs cgo.
GO := CGO_ENABLED=0 go
BIN := nixp2p
RUN_FLAGS ?=
FUZZTIME ?= 10s
TEST_FLAGS ?=
# How many packages are built and tested at once: they start servers and run Nix, and
# some of them mind the clock.
JOBS ?= 2

# Where goroutines meet. The race detector makes a test several times slower and the SQLite
# driver takes it minutes to compile, so the rest is left out, and tests are run -short.
RACE := verify localstore internal/resolve internal/upstream internal/infocache internal/narcache httpfront internal/admin internal/compress p2p
RACE_HERE = $(patsubst %,./%/...,$(foreach p,$(RACE),$(if $(wildcard $(p)/*.go),$(p))))

.PHONY: help
help: ## print this
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: ## build ./nixp2p, static
	$(GO) build -trimpath -o $(BIN) ./cmd/nixp2p

.PHONY: run
run: build ## build, print the line for nix.conf and start a node with its defaults (RUN_FLAGS='--listen ...')
	@echo
	@echo "  For /etc/nix/nix.conf:"
	@echo
	@echo "    substituters = http://127.0.0.1:7654 https://cache.nixos.org"
	@echo
	./$(BIN) serve $(RUN_FLAGS)

.PHONY: deps
deps: ## install what the tests need (Debian, root), if it is missing
	@.ci/deps

.PHONY: test
test: deps vet ## install what is missing, run all tests, those of concurrent packages with -race as well
	$(GO) test -p $(JOBS) -shuffle=on -timeout 10m $(TEST_FLAGS) ./...
	@$(MAKE) --no-print-directory race

.PHONY: race
race: ## the tests of concurrent packages with the race detector
	@if ! command -v gcc >/dev/null; then echo "NO C COMPILER: the race detector is left out" >&2; else \
	  set -x; CGO_ENABLED=1 go test -race -p $(JOBS) -short -timeout 10m $(TEST_FLAGS) $(RACE_HERE); fi

.PHONY: vet
vet: ## gofmt and go vet
	@bad=$$(gofmt -l $$(find . -name '*.go' -not -path './.cache/*')); if [ -n "$$bad" ]; then echo "gofmt these:"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...

# golangci-lint where it is installed; staticcheck, which is most of it, anywhere.
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
.PHONY: lint
lint: vet ## vet, then golangci-lint if there is one, else staticcheck
	@if command -v golangci-lint >/dev/null; then set -x; golangci-lint run; else set -x; $(GO) run $(STATICCHECK) ./...; fi

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (10s)
	@grep -rl --include='*_test.go' '^func Fuzz' . | xargs -n1 dirname | sort -u | while read -r dir; do \
	  grep -ho '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -c6- | while read -r target; do \
	    echo "$$dir $$target"; $(GO) test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) $$dir </dev/null || exit 1; \
	  done || exit 1; done

.PHONY: bench
bench: build ## measure against nginx and write docs/performance.md (lab/bench.sh)
	@if [ -x lab/bench.sh ]; then lab/bench.sh; else echo "there is no lab/bench.sh" >&2; exit 1; fi

.PHONY: chroots
chroots: ## make trees with Nix 2.26 and 2.34, which more tests use (root, debootstrap, minutes)
	lab/mknix-chroot.sh trixie /var/cache/nixp2p/chroot/trixie
	lab/mknix-chroot.sh sid /var/cache/nixp2p/chroot/sid

.PHONY: readme
readme: ## write the tables of README.md that the code makes
	$(GO) test ./internal/archtest -run TestReadme -write -count=1

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN) dist
