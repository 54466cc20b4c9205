# SPDX-License-Identifier: Apache-2.0
#
#   make run          serve a disk through the whole path (IMAGE=disk.img SIZE=1G ARGS='--queues 2')
#   make test         every test: Swift, interop, fuzzing, sanitizers
#   make build        .build/release/xbd-user
#   make check        lint, build, Swift tests: what to run before a commit
#   make xen-lab      real Xen in QEMU judges us: both backends in a domU (FULL=1 everything, SHELL=1 a console; SHELL=domu)
#   make fuzz         each fuzz target for a stated number of inputs (ARGS='back-ring --seconds 600')
#   make bench        against nbdkit, qemu-nbd and nbd-server (ARGS='--quick')
#   make docs         reference and manual pages into .build/docs
#   make lint         formatting, licence lines, shell scripts, house rules
#   make format       mends the formatting
#   make test-interop test-thread test-address     one part of `make test` (FILTER=pattern for interop)
#   make install      into PREFIX (/usr/local); `make uninstall` takes it out again
#   make deps deps-test                            what is missing, through apt
#   make clean

PREFIX ?= /usr/local
IMAGE ?= disk.img
SIZE ?= 1G
ARGS ?=
FILTER ?=

# `make xen-lab SHELL=1` is for us, but SHELL is also what make runs recipes with: take it, and give make back its own.
ifeq ($(origin SHELL),command line)
  LAB_SHELL := $(if $(filter domu domU,$(SHELL)),domu,$(if $(filter 1 dom0,$(SHELL)),dom0))
  ifneq ($(LAB_SHELL),)
    override SHELL := /bin/sh
  endif
endif
LAB_ARGS = $(if $(LAB_SHELL),--shell $(LAB_SHELL)) $(if $(filter 1,$(FULL)),--full) $(ARGS)

BINARY = .build/release/xbd-user

.PHONY: help deps deps-test deps-lab xen-lab build run test check test-interop test-thread test-address fuzz bench docs lint format \
	install uninstall clean

help:
	@sed -n 's/^#   make/make/p' Makefile

deps:
	@scripts/install-deps build

deps-test:
	@scripts/install-deps test

build: deps
	swift build -c release --product xbd-user
	swift build -c release --product xenloopback

run: build
	@SIZE='$(SIZE)' scripts/run '$(IMAGE)' $(ARGS)

test: deps-test build
	scripts/test

check: lint build
	swift test

test-interop: deps-test build
	Tests/interop/run $(FILTER)

test-thread: deps
	XBD_TEST_PARTS=thread scripts/test

test-address: deps
	XBD_TEST_PARTS=address scripts/test

deps-lab:
	@scripts/install-deps lab

xen-lab: deps-lab build
	$(if $(filter 1,$(FULL)),swift build -c release --product xen-party)
	@Tests/xen-lab/run $(LAB_ARGS)

fuzz: deps-test
	Tests/fuzz/run $(ARGS)

bench: deps-test build
	Tests/bench/bench $(ARGS)

docs: deps
	scripts/docs

lint: deps-test
	scripts/lint

format:
	swift format -i --parallel -r Sources Tests Package.swift

install: build
	scripts/manual .build/man
	install -D -m 0755 $(BINARY) '$(DESTDIR)$(PREFIX)/bin/xbd-user'
	install -D -m 0644 .build/release/libxenloopback.so '$(DESTDIR)$(PREFIX)/lib/libxenloopback.so'
	install -d '$(DESTDIR)$(PREFIX)/share/man/man1' '$(DESTDIR)$(PREFIX)/share/bash-completion/completions'
	install -m 0644 .build/man/*.1 '$(DESTDIR)$(PREFIX)/share/man/man1'
	$(BINARY) --generate-completion-script bash \
		> '$(DESTDIR)$(PREFIX)/share/bash-completion/completions/xbd-user'

uninstall:
	rm -f '$(DESTDIR)$(PREFIX)/bin/xbd-user' '$(DESTDIR)$(PREFIX)/lib/libxenloopback.so' '$(DESTDIR)$(PREFIX)'/share/man/man1/xbd-user*.1 \
		'$(DESTDIR)$(PREFIX)/share/bash-completion/completions/xbd-user'

clean:
	rm -rf .build bench-results
