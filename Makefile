# zfsilo. `make demo` shows the main job on two machines, `make check` needs no root,
# `make test` is all that CI runs. The first run says what it installs; see docs/testing.md.

SHELL := /bin/sh
PYTHON ?= python3
PREFIX ?= /usr
TRANSPORT ?= iscsi
LIBRARY = $(PREFIX)/lib/zfsilo
UNITS = $(PREFIX)/lib/systemd/system
DATA = $(PREFIX)/share
DOCS = $(DATA)/doc/zfsilo
ETC ?= /etc

VENV = $(eval VENV := $$(shell $(PYTHON) tests/setup venv))$(VENV)
RUNTIME = $(eval RUNTIME := $$(shell $(PYTHON) tests/setup runtime))$(RUNTIME)
PAGE = $(eval PAGE := $$(shell $(PYTHON) tests/setup cockpit))$(PAGE)
MODULES = PYTHONPATH=$(CURDIR):$(CURDIR)/proto:$(CURDIR)/csi
RUN = $(MODULES) $(VENV)/bin/python
PYTEST = $(RUN) -m pytest
# One process per CPU; the tests of a file share one, with the file's fixtures.
PARALLEL = --numprocesses auto --dist loadfile
UNIT_TESTS = tests --ignore=tests/systemd --ignore=tests/lab --ignore=tests/package \
	--ignore=tests/nix --ignore=tests/bench --ignore=tests/siege --ignore=tests/csi/suite \
	--ignore=tests/csi/image --ignore=tests/cockpit --ignore=tests/kubernetes

.PHONY: help try demo lab bench fuzz siege test check unit systemd-test lab-test deb deb-test nix-test lint stubs
.PHONY: install crash-test crash crash-long install-files docs clean
.PHONY: csi-test image-test kubernetes kubernetes-bench sanity lab-long upgrade-test transcripts coverage tools release
.PHONY: kubernetes-lab cockpit cockpit-test install-cockpit

help:
	@sed -n 's/^## //p' Makefile

## make try      a shell with zfsiloctl, over a simulated host: no root, no ZFS
try:
	@$(MODULES) $(RUNTIME)/bin/python proto/build.py >/dev/null
	@$(MODULES) $(RUNTIME)/bin/python -m tests.playground

## make demo     the main job on two virtual machines, step by step; TRANSPORT=nvme: over NVMe/TCP
demo: stubs
	$(PYTHON) tests/setup lab
	$(RUN) -m tests.lab.demo $(TRANSPORT)

## make lab      a prompt on the two machines
lab: stubs
	$(PYTHON) tests/setup lab
	$(RUN) -m tests.lab

## make test     everything: what CI runs
# Two at once where one uses one processor; what uses both runs alone.
test: lint coverage crash-test systemd-test
	$(MAKE) --no-print-directory --jobs 2 --output-sync=target csi-test image-test nix-test deb-test cockpit-test
	$(MAKE) --no-print-directory lab-test

## make check    linters, types and unit tests: 3 minutes, no root
check: lint unit

unit: stubs tools
	$(PYTEST) $(PARALLEL) $(UNIT_TESTS)

## make coverage the unit tests, and which branches they reach; fails below the floor of pyproject.toml
coverage: stubs tools
	$(PYTEST) $(PARALLEL) --cov --cov-report=term:skip-covered $(UNIT_TESTS)

# Shells and linters that Debian has; without root the missing ones are named, and their tests skip.
tools:
	@$(PYTHON) tests/setup tools prometheus >/dev/null

lint: stubs
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

## make csi-test       the CSI plugin: csi-sanity over a simulated host, and the manifests
csi-test: stubs
	$(PYTHON) tests/setup csi
	$(PYTEST) tests/csi/suite

## make image-test     the image of the CSI plugin, built by buildah and started as the pods start it
image-test: stubs
	$(PYTHON) tests/setup image csi
	$(PYTEST) tests/csi/image

## make kubernetes     the CSI plugin in a real Kubernetes control plane, over simulated hosts
kubernetes: stubs
	$(PYTHON) tests/setup kubernetes
	$(PYTEST) tests/kubernetes --ignore tests/kubernetes/lab

## make kubernetes-lab     long: pods in containerd on the two machines, with real ZFS, iSCSI and NVMe/TCP
kubernetes-lab: stubs
	$(PYTHON) tests/setup kubelet
	$(PYTEST) -sv tests/kubernetes/lab

## make kubernetes-bench    pods a minute, beside a driver that does nothing; many calls at once
kubernetes-bench: stubs
	$(PYTHON) tests/setup kubernetes
	$(RUN) -m tests.kubernetes.bench

## make sanity         csi-sanity over real ZFS and iSCSI (TRANSPORT=nvme: NVMe/TCP), on the two machines
sanity: stubs
	$(PYTHON) tests/setup csi lab
	$(RUN) -m tests.csi.lab_sanity --transport $(TRANSPORT)

## make systemd-test   a real systemd in namespaces over a simulated host
systemd-test: stubs deb
	$(PYTHON) tests/setup systemd
	$(PYTEST) $(PARALLEL) tests/systemd

## make cockpit        the page of Cockpit, built with npm packages; its folder is printed
cockpit:
	@$(PYTHON) tests/setup cockpit

## make cockpit-test   that page in Chromium, with a real Cockpit, over a simulated host
cockpit-test: stubs
	$(PYTHON) tests/setup systemd browser cockpit
	$(PYTEST) tests/cockpit

## make lab-test       a real kernel with ZFS and iSCSI, in two virtual machines: the main paths
lab-test: stubs
	$(PYTHON) tests/setup lab
	$(PYTEST) --numprocesses 2 --dist loadscope -m "not long" tests/lab/test_contract.py
	$(PYTEST) tests/lab -m "not long" --ignore tests/lab/test_contract.py

## make lab-long       the rest of it: NVMe, neighbours, CSI, fencing, rotation, schedules, the package
lab-long: stubs deb
	$(PYTHON) tests/setup lab
	$(PYTEST) tests/lab -m long

## make upgrade-test   the package on the two machines, upgraded under load, purged: dpkg is slow there
upgrade-test: stubs deb
	$(PYTHON) tests/setup lab
	$(PYTEST) -s tests/lab/test_package.py

## make crash      every operation cut at every point; crash-long: 60 power cuts
crash: stubs
	$(PYTHON) tests/setup systemd lab
	$(RUN) -m tests.crash

crash-long: stubs
	$(PYTHON) tests/setup systemd lab
	$(RUN) -m tests.crash --long

## make crash-test the part of it that needs no machine, at its shortest
crash-test: stubs
	$(RUN) -m tests.crash --short matrix restored
	ZFSILO_THOROUGH=1 $(PYTEST) tests/host/test_tool_faults.py

## make fuzz     100,000 mutated messages, 20,000 D-Bus calls, and texts for every parser
fuzz: stubs
	$(RUN) -m tests.fuzz

## make siege    floods of strangers and low roles against a real systemd, in namespaces: 5 minutes
siege: stubs
	$(PYTHON) tests/setup systemd
	$(RUN) -m tests.siege $(FLOODS)

## make bench    the figures of docs/measurements.md
bench: stubs
	$(PYTHON) tests/setup systemd lab
	$(RUN) -m tests.bench

stubs:
	@$(RUN) proto/build.py

## make deb      dist/zfsilo_VERSION_ARCHITECTURE.deb and the page of Cockpit, for Debian 12 and later
deb: stubs
	$(PYTHON) tests/setup package cockpit
	$(RUN) units/debian/build.py

## make deb-test       that package installed, upgraded, removed and purged on two releases
deb-test: deb
	$(PYTEST) tests/package

## make nix-test       nix/ parsed, and its module evaluated for three hosts
nix-test: stubs
	$(PYTHON) tests/setup nix
	$(PYTEST) tests/nix

## make install  into DESTDIR, for the Python that PYTHON names
install: install-files
	$(PYTHON) -m pip install --quiet --no-warn-script-location --root-user-action=ignore \
		$(PIP_ARGS) --target $(DESTDIR)$(LIBRARY) .
	rm -rf $(DESTDIR)$(LIBRARY)/bin
ifeq ($(DESTDIR),)
	systemd-sysusers
	systemd-tmpfiles --create
	systemctl daemon-reload
	systemctl reload dbus.service
endif

## make docs     manual pages, the gRPC reference and shell completion, in build/doc
docs:
	$(PYTHON) docs/build.py build/doc

## make transcripts    today's output into the transcripts of the documentation
transcripts: stubs
	$(RUN) -m tests.docs.transcripts

# All but the Python libraries: the base of a package for a distribution.
install-files: docs
	install -d $(DESTDIR)$(LIBRARY) $(DESTDIR)$(PREFIX)/bin $(DESTDIR)$(UNITS)
	$(call launcher,-Is,zfsilod.daemon,$(PREFIX)/bin/zfsilod)
	$(call launcher,-Is,zfsilod.ctl,$(PREFIX)/bin/zfsiloctl)
	$(call launcher,-IS,zfsilod.engine.process,$(LIBRARY)/zfsilo-worker)
	$(call launcher,-Is,zfsilod.gateway.main,$(LIBRARY)/zfsilo-gateway)
	install -m 644 units/*.service units/*.socket units/*.slice units/*.timer $(DESTDIR)$(UNITS)
	install -D -m 644 units/sysusers.conf $(DESTDIR)$(PREFIX)/lib/sysusers.d/zfsilo.conf
	install -D -m 644 units/tmpfiles.conf $(DESTDIR)$(PREFIX)/lib/tmpfiles.d/zfsilo.conf
	install -d $(DESTDIR)$(DOCS)
	install -m 644 build/doc/*.md units/monitoring/alerts.yml units/monitoring/dashboard.json \
		$(DESTDIR)$(DOCS)
	test ! -e build/doc/openapi.json || install -m 644 build/doc/openapi.json $(DESTDIR)$(DOCS)
	install -d $(DESTDIR)$(DOCS)/examples
	install -m 644 docs/examples/*.toml $(DESTDIR)$(DOCS)/examples
	for section in 1 5 8; do \
		install -d $(DESTDIR)$(DATA)/man/man$$section; \
		install -m 644 build/doc/*.$$section $(DESTDIR)$(DATA)/man/man$$section; done
	install -D -m 644 build/doc/zfsiloctl.bash \
		$(DESTDIR)$(DATA)/bash-completion/completions/zfsiloctl
	install -D -m 644 build/doc/zfsiloctl.zsh \
		$(DESTDIR)$(DATA)/zsh/vendor-completions/_zfsiloctl
	install -D -m 644 build/doc/zfsiloctl.fish \
		$(DESTDIR)$(DATA)/fish/vendor_completions.d/zfsiloctl.fish
	install -D -m 644 units/host/59-zfsilo.rules \
		$(DESTDIR)$(PREFIX)/lib/udev/rules.d/59-zfsilo.rules
	install -m 755 units/host/zfsilo-zvol $(DESTDIR)$(PREFIX)/lib/udev/zfsilo-zvol
	install -D -m 644 units/host/tlshd.conf $(DESTDIR)$(UNITS)/tlshd.service.d/zfsilo.conf
	install -D -m 644 units/host/multipath.conf $(DESTDIR)$(ETC)/multipath/conf.d/zfsilo.conf
	install -D -m 644 dbus/org.zfsilo1.conf $(DESTDIR)$(DATA)/dbus-1/system.d/org.zfsilo1.conf
	install -D -m 644 dbus/org.zfsilo1.service \
		$(DESTDIR)$(DATA)/dbus-1/system-services/org.zfsilo1.service
	install -D -m 644 dbus/org.zfsilo1.xml $(DESTDIR)$(DATA)/dbus-1/interfaces/org.zfsilo1.xml
	install -D -m 644 dbus/org.zfsilo1.policy \
		$(DESTDIR)$(DATA)/polkit-1/actions/org.zfsilo1.policy
	install -D -m 644 dbus/org.zfsilo1.rules $(DESTDIR)$(DATA)/polkit-1/rules.d/org.zfsilo1.rules

# The page of Cockpit: a package of its own.
install-cockpit:
	install -d $(DESTDIR)$(DATA)/cockpit/zfsilo
	install -m 644 $(PAGE)/* $(DESTDIR)$(DATA)/cockpit/zfsilo

# launcher FLAGS MODULE PATH: a script that finds our library, and nothing of the user's
define launcher
	sed -e 's|@PYTHON@|$(shell command -v $(PYTHON))|' -e 's|@FLAGS@|$(1)|' \
		-e 's|@LIBRARY@|$(LIBRARY)|' -e 's|@MODULE@|$(2)|' \
		units/launcher.in > $(DESTDIR)$(3)
	chmod 755 $(DESTDIR)$(3)
endef

## make release  VERSION=x.y.z: the version everywhere, the changelog's section, a commit and a tag
release:
	$(PYTHON) docs/release.py $(VERSION)

clean:
	rm -rf .coverage build dist proto/*/v1/*_pb2.py proto/*/v1/*_pb2.pyi
