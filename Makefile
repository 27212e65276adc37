# The targets explain themselves: make help.
SHELL := /bin/bash
.DEFAULT_GOAL := help

BIN     := .cache/bin
VERSION ?= devel
# Without these tags reflection in gRPC's tracing keeps methods alive that
# brokerd must not hold; docs/design/link-proof.md says more.
TAGS    := grpcnotrace,retrynotrace
GOBUILD := CGO_ENABLED=0 go build -trimpath -tags $(TAGS) -ldflags '-s -w -X github.com/gortium/hermes-broker/server.Version=$(VERSION) -X main.version=$(VERSION)'

FUZZTIME ?= 30s
# Tests that need a container engine; see scripts/install-test-deps. Like those of the
# module as a whole they build the programs themselves, which go test does not see: a
# cached result would be one of other programs.
E2E := ./e2e/...

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

.PHONY: build
build: ## Build brokerd, brokerhost and brokerctl into bin/
	$(GOBUILD) -o bin/ ./cmd/brokerd ./cmd/brokerhost ./cmd/brokerctl

.PHONY: build-brokerd
build-brokerd:
	$(GOBUILD) -o $(OUT) ./cmd/brokerd

.PHONY: demo
demo: ## Show the main job on a real container engine (as root; about a minute)
	@scripts/install-test-deps demo
	@scripts/demo

.PHONY: test
test: ## Run every test, end to end ones too, with the race detector (as root)
	@scripts/install-test-deps
	@scripts/fail2ban-current >/dev/null
	go vet ./...
	go test -race -count=1 -timeout 20m $$(go list ./... | grep -v /e2e)
	go test -race -count=1 -timeout 30m $(E2E)

.PHONY: e2e-engines
e2e-engines: ## Run the end-to-end suite on this machine's engine and on the current one (as root)
	@scripts/install-test-deps
	@scripts/fail2ban-current >/dev/null
	@set -e; current=$$(scripts/engine-root); summary=; \
	for root in '' "$$current"; do \
	  engine=$$(PATH=$$PATH:/usr/sbin:/sbin; $${root:+chroot "$$root"} dockerd --version); \
	  echo "== $$engine"; \
	  E2E_REQUIRE=1 E2E_ENGINE_ROOT=$$root go test -race -count=1 -p 1 -timeout 30m $(E2E) && verdict=passed || verdict=FAILED; \
	  summary+=$$(printf '\n%s: %s' "$$verdict" "$$engine"); \
	done; \
	echo "$$summary"; [[ $$summary != *FAILED:* ]]

.PHONY: fuzz
fuzz: ## Run every fuzz target for FUZZTIME (default 30s) each
	scripts/fuzz $(FUZZTIME)

.PHONY: bench
bench: ## Measure the budgets as ratios, into docs/benchmarks.md (as root)
	@scripts/install-test-deps
	scripts/bench

.PHONY: generate
generate: $(BIN)/buf $(BIN)/protoc-gen-go $(BIN)/protoc-gen-go-grpc ## Generate code and documents from proto/ and the commands
	PATH="$(CURDIR)/$(BIN):$$PATH" buf format -w
	PATH="$(CURDIR)/$(BIN):$$PATH" buf generate
	PATH="$(CURDIR)/$(BIN):$$PATH" buf build --path proto/hermes/broker -o api/broker.binpb --as-file-descriptor-set
	go run ./internal/rpcdoc api/broker.binpb docs/rpc.md

.PHONY: check-generate
check-generate: generate ## Fail when generated files are not up to date
	@git diff --exit-code -- proto api internal/hostv1 docs/rpc.md || { echo 'run make generate and commit the result' >&2; exit 1; }
	@test -z "$$(git status --porcelain -- proto api internal/hostv1 docs/rpc.md)" || { git status --short -- proto api internal/hostv1 docs/rpc.md; echo 'run make generate and commit the result' >&2; exit 1; }

.PHONY: lint
lint: $(BIN)/buf $(BIN)/staticcheck ## Check formatting, go vet, staticcheck and the schema
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { gofmt -l $$(git ls-files '*.go'); echo 'run gofmt -w' >&2; exit 1; }
	go vet ./...
	$(BIN)/staticcheck ./...
	$(BIN)/buf lint
	$(BIN)/buf format -d --exit-code

# Tools are pinned by tools/go.mod and tools/buf/go.mod and their sums.
$(BIN)/buf: tools/buf/go.mod
	cd tools/buf && go build -o ../../$@ github.com/bufbuild/buf/cmd/buf
$(BIN)/protoc-gen-go: tools/go.mod
	cd tools && go build -o ../$@ google.golang.org/protobuf/cmd/protoc-gen-go
$(BIN)/protoc-gen-go-grpc: tools/go.mod
	cd tools && go build -o ../$@ google.golang.org/grpc/cmd/protoc-gen-go-grpc
$(BIN)/staticcheck: tools/go.mod
	cd tools && go build -o ../$@ honnef.co/go/tools/cmd/staticcheck
