# Everything that a person or CI does with this tree is a target here.

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

# Root's PATH often lacks the usual place of Go.
GO ?= $(or $(shell command -v go 2>/dev/null),$(wildcard /usr/local/go/bin/go),go)
export GO
TOOL := $(GO) tool -modfile=go.tools.mod

# Every binary and image of one build carries the same version.
ifndef VERSION
VERSION := $(shell hack/version)
endif
CLUSTER ?= orlop
NODES ?= 1
REGISTRY ?=

LDFLAGS := -s -w -X orlop.dev/orlop/internal/version.version=$(VERSION)
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false -ldflags "$(LDFLAGS)"
# Commands to build; `make build CMD=virt-handler` builds only that one.
CMD ?= $(notdir $(patsubst %/,%,$(dir $(wildcard cmd/*/main.go))))

# Tests use the platform's QEMU, not the machine's.
QEMU := $(CURDIR)/bin/qemu
export ORLOP_QEMU ?= $(QEMU)/qemu-system-x86_64
TEST := PATH="$(QEMU):$$PATH" ORLOP_BIN=$(CURDIR)/bin $(GO) test

##@ Use

.PHONY: up
up: deps build images ## build everything, start the embedded cluster and install the platform
	bin/d8 cluster up --name $(CLUSTER) --nodes $(NODES)
	bin/d8 install

.PHONY: down
down: ## remove the embedded cluster and everything it left on this machine
	bin/d8 cluster down --name $(CLUSTER)

.PHONY: demo
demo: guests ## run a Debian guest on the embedded cluster and show how to get in
	hack/demo

.PHONY: push
push: build images ## push the images to REGISTRY
	@[ -n "$(REGISTRY)" ] || { echo 'say where to: make push REGISTRY=registry.example.com/orlop' >&2; exit 2; }
	bin/orlop-images -version=$(VERSION) push $(REGISTRY)

##@ Build

.PHONY: deps
deps: ## install the Debian packages that builds and the embedded cluster need
	@hack/deps

.PHONY: build
build: check-go embedded binaries ## build our programs to bin/ and the embedded ones to bin/embedded/

.PHONY: binaries
binaries: check-go
	@mkdir -p bin
	$(BUILD) -o bin/ $(addprefix ./cmd/,$(CMD))

.PHONY: embedded
embedded: check-go
	@hack/build-embedded

.PHONY: bin/orlop-images
bin/orlop-images: check-go
	@$(BUILD) -o $@ ./images

.PHONY: images
images: bin/orlop-images ## assemble the container images as OCI layouts in bin/images/
	bin/orlop-images build

.PHONY: guests
guests: qemu ## build the guests of demo and tests: bin/guests/{tiny,debian}.qcow2
	bin/orlop-images guests bin/guests

.PHONY: qemu
qemu: bin/orlop-images
	@bin/orlop-images tools bin/qemu

.PHONY: generate
generate: check-go ## write generated code and manifests again
	hack/generate

.PHONY: fmt
fmt: check-go ## format Go code
	$(TOOL) golangci-lint fmt ./...

.PHONY: clean
clean: ## remove everything built here
	rm -rf bin

##@ Check

.PHONY: test
test: unit integration test-qemu e2e ## run all four levels of tests

.PHONY: unit
unit: check-go embedded qemu ## test packages without a cluster, with the race detector
	$(TEST) -race ./api/... ./charts/... ./cmd/... ./config/... ./images/... ./internal/...

# Packages with tests that want an API server of their own.
INTEGRATION = $(sort $(dir $(shell grep -rl --include=*_test.go '^//go:build integration' internal test)))

.PHONY: integration
integration: check-go embedded ## test controllers against a real kube-apiserver and etcd
	$(TEST) -tags integration -timeout 15m $(addprefix ./,$(INTEGRATION))

.PHONY: test-qemu
test-qemu: guests ## test the machine against a real QEMU with a tiny guest
	$(TEST) -timeout 20m -count=1 ./test/qemu/...

.PHONY: e2e
e2e: deps build images guests ## test user stories on an embedded cluster of its own
	$(TEST) -tags e2e -timeout 60m -count=1 -p 1 ./test/e2e/...

.PHONY: stress
stress: deps build images guests ## two hundred random changes of a running machine's disks, on a cluster of its own
	ORLOP_STRESS=200 $(TEST) -tags e2e -timeout 60m -count=1 -v -run Stress ./test/e2e

.PHONY: bench-start
bench-start: up guests ## measure the start of a guest against QEMU alone, on the cluster of `make up`
	$(GO) run ./test/bench/start

.PHONY: bench-migrate
bench-migrate: guests ## measure a migration through the handlers' tunnel against QEMU to QEMU
	ORLOP_BENCH=1 $(TEST) -timeout 20m -count=1 -v -run 'TestBenchMigration$$' ./test/qemu

.PHONY: bench-addresses
bench-addresses: check-go ## measure how an address is found among 50 000 leased ones
	$(GO) run ./test/bench/addresses

.PHONY: bench-net
bench-net: up guests ## measure the guest's network against a bare tap on a bridge, on the cluster of `make up`
	$(GO) run ./test/bench/net

.PHONY: bench-handler
bench-handler: up guests ## measure the node agent at rest with 10 machines, on the cluster of `make up`
	$(GO) run ./test/bench/handler

.PHONY: bench-disk
bench-disk: binaries guests ## measure a guest's disk under our launcher against QEMU alone
	bin/orlop-images fio bin/fio
	$(GO) run ./test/bench/disk

.PHONY: lint
lint: check-go ## run the linters
	$(TOOL) golangci-lint run --build-tags e2e,integration ./...

.PHONY: verify
verify: generate fmt lint unit ## what every commit must pass: generated and formatted, linted, unit-tested
	@git diff --exit-code --stat || { echo 'generated or formatted files differ from what is committed' >&2; exit 1; }

##@ Help

.PHONY: help
help: ## show the targets
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} /^[a-z][a-z0-9-]*:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

.PHONY: check-go
check-go:
	@hack/check-go
