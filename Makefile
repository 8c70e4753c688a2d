# Bare `make` prints what it can do.
SHELL := /bin/bash -o pipefail
.DEFAULT_GOAL := help
export PATH := $(PATH):/usr/local/go/bin

# What is built is one static binary; the race detector alone needs cgo.
GO := CGO_ENABLED=0 go
BIN := nixp2p
RUN_FLAGS ?=
DEMO_FLAGS ?=
FUZZTIME ?= 10s
TEST_FLAGS ?=
# What is tested without the race detector: all, but for what it runs whole.
PKGS ?= $(if $(shell command -v gcc),$(shell .ci/plain $(RACE_HERE)),./...)
# How many packages each of the two runs builds and tests at once: they start servers and run Nix,
# and some of them mind the clock.
JOBS ?= 2

# Where goroutines meet. The race detector makes a test several times slower and the SQLite
# driver takes it minutes to compile, so the rest is left out, and tests are run -short.
RACE := verify localstore internal/backoff internal/taskgroup internal/runclock internal/resolve internal/transfer internal/update internal/upstream internal/state internal/narcache internal/mirror internal/bucket httpfront internal/admin p2p
RACE_HERE = $(patsubst %,./%/...,$(foreach p,$(RACE),$(if $(wildcard $(p)/*.go $(p)/*/*.go),$(p))))

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

.PHONY: demo
demo: build ## show what nodes do for each other, on this machine alone, in 20 s (DEMO_FLAGS='--uplink 16Mbit/s')
	./$(BIN) demo $(DEMO_FLAGS)

.PHONY: deps
deps: ## install what the tests need (Debian, root), if it is missing
	@.ci/deps

.PHONY: test
test: deps vet ## install what is missing, run all tests, those of concurrent packages with -race
	@$(MAKE) --no-print-directory --keep-going --jobs=2 plain race

# Most tests in packages that have parallel ones wait for processes.
.PHONY: plain
plain:
	$(GO) test -p $(JOBS) -parallel 4 -shuffle=on -timeout 45m $(TEST_FLAGS) $(PKGS)

.PHONY: race
race: ## the tests of concurrent packages with the race detector
	@if ! command -v gcc >/dev/null; then echo "NO C COMPILER: the race detector is left out" >&2; else \
	  set -x; CGO_ENABLED=1 go test -race -p $(JOBS) -short -timeout 45m $(TEST_FLAGS) $(RACE_HERE) 2>&1 | sed -u 's/^/race: /'; fi

.PHONY: vet
vet: ## gofmt and go vet
	@bad=$$(gofmt -l $$(find . -name '*.go' -not -path './.cache/*')); if [ -n "$$bad" ]; then echo "gofmt these:"; echo "$$bad"; exit 1; fi
	$(GO) vet ./...

# golangci-lint where it is installed; staticcheck, which is most of it, anywhere.
GOVULNCHECK := golang.org/x/vuln/cmd/govulncheck@latest
STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
.PHONY: lint
lint: vet ## vet, golangci-lint if there is one, else staticcheck, and known vulnerabilities
	@if command -v golangci-lint >/dev/null; then set -x; golangci-lint run; else set -x; $(GO) run $(STATICCHECK) ./...; fi
	@if curl -sfm 5 -o /dev/null https://vuln.go.dev/index/db.json; then set -x; $(GO) run $(GOVULNCHECK) ./...; \
	  else echo "NOT CHECKED for known vulnerabilities: vuln.go.dev cannot be reached" >&2; fi

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (10s)
	@.ci/fuzz $(FUZZTIME)

.PHONY: bench
bench: build ## measure against nginx and write docs/performance.md (Nix, nginx, wrk, curl; CORPUS=DIR of lab/mkcorpus)
	$(GO) run ./lab/bench -nixp2p ./$(BIN) $(if $(CORPUS),-corpus $(CORPUS))

.PHONY: cold
cold: ## all hosts of a site start cold: 8, 16, 32 of them, with and without leases (root, Nix, at most 45 minutes; COLD_FLAGS)
	$(GO) run ./lab/cold $(COLD_FLAGS)

.PHONY: faults
faults: ## run Nix against ill caches and an ill nixp2p, and write docs/faults.md (root, 25 to 30 minutes; `go run ./lab/faults -part peers` makes one part)
	$(GO) run ./lab/faults

.PHONY: chroots
chroots: ## make trees with Nix 2.26 and 2.34, which more tests use (root, debootstrap, minutes)
	lab/mknix-chroot.sh trixie /var/cache/nixp2p/chroot/trixie
	lab/mknix-chroot.sh sid /var/cache/nixp2p/chroot/sid

.PHONY: readme
readme: ## write the tables of README.md that the code makes
	$(GO) test ./internal/archtest -run TestReadme -write -count=1

# Installing. PREFIX and DESTDIR as everywhere; /usr/local/lib/systemd is one of the places
# where systemd looks.
VERSION := $(shell cat VERSION)
PREFIX ?= /usr/local
DESTDIR ?=
BINDIR ?= $(PREFIX)/bin
UNITDIR ?= $(PREFIX)/lib/systemd/system
MANDIR ?= $(PREFIX)/share/man/man1
BASHDIR ?= $(PREFIX)/share/bash-completion/completions
ZSHDIR ?= $(PREFIX)/share/zsh/site-functions
FISHDIR ?= $(PREFIX)/share/fish/vendor_completions.d
# How the units find programs; systemd searches the usual places.
KILL ?= kill
SLEEP ?= sleep
SYSTEMCTL ?= systemctl
UNITS := nixp2p.socket nixp2p.service nixp2p-retry.timer nixp2p-retry.service
# Makes manual and completions: BIN, or its like for this machine when that is for another.
HOSTBIN ?= $(BIN)

.PHONY: install
install: ## install what `make build` built, with units, manual and completions (PREFIX, DESTDIR)
	@test -x $(BIN) || { echo "there is no $(BIN): run 'make build' first" >&2; exit 1; }
	install -d $(DESTDIR)$(BINDIR)
	install -m 0755 $(BIN) $(DESTDIR)$(BINDIR)/nixp2p
	@$(MAKE) --no-print-directory install-manual install-units

.PHONY: install-manual
install-manual:
	install -d $(DESTDIR)$(MANDIR) $(DESTDIR)$(BASHDIR) $(DESTDIR)$(ZSHDIR) $(DESTDIR)$(FISHDIR)
	$(abspath $(HOSTBIN)) man $(DESTDIR)$(MANDIR)
	$(abspath $(HOSTBIN)) completion bash > $(DESTDIR)$(BASHDIR)/nixp2p
	$(abspath $(HOSTBIN)) completion zsh > $(DESTDIR)$(ZSHDIR)/_nixp2p
	$(abspath $(HOSTBIN)) completion fish > $(DESTDIR)$(FISHDIR)/nixp2p.fish

.PHONY: install-units
install-units:
	install -d $(DESTDIR)$(UNITDIR)
	install -m 0644 systemd/nixp2p.socket systemd/nixp2p-retry.timer $(DESTDIR)$(UNITDIR)
	for unit in nixp2p.service nixp2p-retry.service; do \
	  sed -e 's|=/usr/local/bin/nixp2p |=$(BINDIR)/nixp2p |' -e 's|^ExecReload=kill |ExecReload=$(KILL) |' -e '/^#/!s,\([^a-z]\)systemctl ,\1$(SYSTEMCTL) ,g' -e 's,; do sleep ,; do $(SLEEP) ,' systemd/$$unit > $(DESTDIR)$(UNITDIR)/$$unit; done
	@grep -q '^ExecStart=$(BINDIR)/nixp2p ' $(DESTDIR)$(UNITDIR)/nixp2p.service || { echo "the unit starts something else" >&2; exit 1; }

.PHONY: uninstall
uninstall: ## remove what `make install` put there; state and cache stay
	@if [ -z "$(DESTDIR)" ] && [ -d /run/systemd/system ]; then systemctl disable --now nixp2p.socket nixp2p.service || true; fi
	rm -f $(DESTDIR)$(BINDIR)/nixp2p $(addprefix $(DESTDIR)$(UNITDIR)/,$(UNITS)) $(DESTDIR)$(MANDIR)/nixp2p.1 $(DESTDIR)$(MANDIR)/nixp2p-*.1 \
	  $(DESTDIR)$(BASHDIR)/nixp2p $(DESTDIR)$(ZSHDIR)/_nixp2p $(DESTDIR)$(FISHDIR)/nixp2p.fish
	@if [ -z "$(DESTDIR)" ] && [ -e /etc/nix/nixp2p.conf ]; then rm -f /etc/nix/nixp2p.conf; \
	  if [ -d /run/systemd/system ]; then systemctl try-restart nix-daemon.service || true; \
	  else echo "removed /etc/nix/nixp2p.conf: restart the Nix daemon to apply this" >&2; fi; fi
	@if [ -z "$(DESTDIR)" ] && grep -qs 127.0.0.1:7654 /etc/nix/nix.conf; then \
	  echo "/etc/nix/nix.conf still names http://127.0.0.1:7654: remove it, or each Nix command waits for it" >&2; fi

.PHONY: install-test
install-test: build ## install into an empty directory, look, remove
	.ci/install-test

.PHONY: deb
deb: ## make dist/nixp2p_VERSION_ARCH.deb (ARCH=amd64|arm64)
	deploy/debian/build.sh $(ARCH)

.PHONY: deb-test
deb-test: ## install, run and remove the package in a copy of a chroot of `make chroots` (root)
	deploy/debian/test.sh

# Both releases side by side. Trees are made once and kept in ~/.cache/nixp2p-test/system.
BOOT_FLAGS ?=
RELEASES ?= bookworm sid
.PHONY: system-trees
system-trees: ## make the trees that `make test-system` boots, where they are missing (root, minutes)
	$(GO) run ./lab/boot -only-trees $(BOOT_FLAGS) $(RELEASES)

.PHONY: test-system
test-system: ## boot Debian 12 and sid in containers, install, break, upgrade, remove (root, systemd-nspawn, 5 minutes; RELEASES, BOOT_FLAGS)
	COMPRESS=none deploy/debian/build.sh
	$(GO) run ./lab/boot -deb dist/nixp2p_$(VERSION)_$$(dpkg --print-architecture).deb $(BOOT_FLAGS) $(RELEASES)

.PHONY: release
release: ## make dist/ with archives for all platforms; the same bytes from the same sources (TARGETS='linux/amd64 ...')
	.ci/release dist $(TARGETS)

.PHONY: release-test
release-test: ## make a release twice, in other directories and from nothing, and compare (TARGETS)
	.ci/release-test $(TARGETS)

.PHONY: vendor-hash
vendor-hash: ## bring vendorHash in nix/package.nix up to date with go.mod (needs Nix)
	nix/vendor-hash.sh --write

.PHONY: test-nix
test-nix: ## evaluate the modules, compare vendorHash (needs Nix; part of `make test`)
	$(GO) test -count=1 ./nix

.PHONY: test-deploy
test-deploy: build ## hold deploy/*.yaml against the schemas of Kubernetes and Compose (downloads them)
	cd deploy/check && $(GO) run . -nixp2p $(abspath $(BIN)) ../kubernetes.yaml ../kubernetes-runner.yaml ../compose.yaml

.PHONY: clean
clean: ## remove what was built
	rm -rf $(BIN) dist
