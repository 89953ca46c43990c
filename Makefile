SHELL := /bin/bash
.DELETE_ON_ERROR:

DESTDIR ?=
PREFIX ?= /usr
BINDIR ?= $(PREFIX)/bin
LIBEXECDIR ?= $(PREFIX)/libexec
UNITDIR ?= $(PREFIX)/lib/systemd/system
DATADIR ?= $(PREFIX)/share
SYSCONFDIR ?= /etc
# Debian's zsh looks for what packages bring in vendor-completions, others in site-functions.
ZSHDIR ?= $(DATADIR)/zsh/$(if $(wildcard /etc/debian_version),vendor-completions,site-functions)
INSTALL ?= install -p

VERSION := $(shell sed -n 's/^__version__ = "\(.*\)"$$/\1/p' nvmeofd/__init__.py)
VENV := .venv/bin
define newline


endef
# Passed on to pytest: make unit ARGS="-k guard"
ARGS ?=
# How many tests run side by side, each module of them in one worker. WORKERS=0: in this process, for pdb and -s.
WORKERS ?= 2
PYTEST := $(VENV)/pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# For make soak: how many histories, and the seed of the first.
SEEDS ?= 10000
FIRST ?= 0

.PHONY: help setup lint format manual check check-fast unit vm soak fuzz demo bench deb lintian rpm rpmlint release install-data clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 22

setup: ## install what building and testing need (Debian packages, .venv)
	@scripts/setup-host.sh
	@scripts/setup-venv.sh

lint: setup ## ruff, mypy, mandoc
	$(VENV)/ruff check
	$(VENV)/ruff format --check
	$(VENV)/mypy
	mandoc -T lint -W warning man/*.[158]

format: setup ## let ruff format and fix
	$(VENV)/ruff format
	$(VENV)/ruff check --fix

manual: setup ## man/org.nvmeofd1.5 from dbus/org.nvmeofd1.xml
	$(VENV)/python scripts/dbus_man.py dbus/org.nvmeofd1.xml man/org.nvmeofd1.5

# One run of pytest over all tiers, and nothing after it: its summary is the last thing said. Meanwhile the guests are made
# ready; a test that needs one waits for that, and says why if there is none.
check: lint deb rpm ## everything: lint, then all tests
	$(VENV)/python -m tests.vm.harness build >build/guests.log 2>&1 & $(PYTEST) $(ARGS)

check-fast: lint deb rpm ## lint, then all tests that need no guest
	$(PYTEST) tests/unit tests/simulation tests/bus tests/packages $(ARGS)

unit: setup ## unit tests
	$(PYTEST) tests/unit $(ARGS)

vm: setup deb ## tests on a real kernel, in a guest
	$(PYTEST) tests/vm $(ARGS)

soak: setup ## random histories, on all CPUs: SEEDS=10000 FIRST=0
	$(VENV)/python -m tests.simulation.soak --seeds $(SEEDS) --first $(FIRST) $(ARGS)

# The wheels of atheris are for Python 3.11 to 3.13; for another one pip builds it, which needs clang.
fuzz: setup ## parsers under a fuzzer, a minute for each group
	@$(VENV)/python -c "import atheris" 2>/dev/null || $(VENV)/python -m pip install -q "atheris>=3,<4"
	$(VENV)/python -m tests.fuzz $(ARGS)

demo: setup deb ## the main job, shown in a guest
	$(VENV)/python -m tests.vm.demo $(ARGS)

bench: setup deb ## what the daemon costs, measured here and in a guest
	$(VENV)/python -m bench.mounts
	$(VENV)/python -m bench.storm
	$(VENV)/python -m bench.ctl
	$(VENV)/python -m bench.cycle $(ARGS)

deb: setup ## build/deb/nvmeofd_VERSION_all.deb from the tracked files as they are
	@scripts/build-deb.sh

lintian: deb ## the Debian packages, binary and source, held against policy
	@scripts/lintian.sh

rpm: $(if $(shell command -v dpkg-query),setup) ## build/rpm/RPMS/noarch/nvmeofd-VERSION-*.rpm from the tracked files as they are
	@scripts/build-rpm.sh

rpmlint: rpm ## the spec file and the RPM, held against Fedora's rules
	@scripts/rpmlint.sh

release: setup ## build/release/VERSION from the tag of that version: make release VERSION=1.2.3
	@scripts/release.py $(VERSION)

# What pip does not install; the packages call this, too.
install-data: ## service, policies and the rest, into DESTDIR
	$(INSTALL) -d -m 755 $(DESTDIR)$(SYSCONFDIR)/nvmeofd/nvmeofd.conf.d
	$(INSTALL) -D -m 644 etc/nvmeofd.conf $(DESTDIR)$(SYSCONFDIR)/nvmeofd/nvmeofd.conf
	$(INSTALL) -D -m 755 libexec/nvmeofd $(DESTDIR)$(LIBEXECDIR)/nvmeofd
	$(INSTALL) -D -m 644 systemd/nvmeofd.service $(DESTDIR)$(UNITDIR)/nvmeofd.service
	$(INSTALL) -D -m 644 systemd/nvmeofd-shutdown.service $(DESTDIR)$(UNITDIR)/nvmeofd-shutdown.service
	$(INSTALL) -D -m 644 dbus/org.nvmeofd1.conf $(DESTDIR)$(DATADIR)/dbus-1/system.d/org.nvmeofd1.conf
	$(INSTALL) -D -m 644 dbus/org.nvmeofd1.service $(DESTDIR)$(DATADIR)/dbus-1/system-services/org.nvmeofd1.service
	$(if $(wildcard dbus/org.nvmeofd1.xml),$(INSTALL) -D -m 644 dbus/org.nvmeofd1.xml \
		$(DESTDIR)$(DATADIR)/dbus-1/interfaces/org.nvmeofd1.xml)
	$(INSTALL) -D -m 644 polkit/org.nvmeofd1.policy $(DESTDIR)$(DATADIR)/polkit-1/actions/org.nvmeofd1.policy
	$(foreach page,$(wildcard man/*.[158]),$(INSTALL) -D -m 644 $(page) \
		$(DESTDIR)$(DATADIR)/man/man$(subst .,,$(suffix $(page)))/$(notdir $(page))$(newline))
	$(INSTALL) -D -m 755 bin/nvmeofctl $(DESTDIR)$(BINDIR)/nvmeofctl
	$(INSTALL) -D -m 644 completions/nvmeofctl.bash $(DESTDIR)$(DATADIR)/bash-completion/completions/nvmeofctl
	$(INSTALL) -D -m 644 completions/nvmeofctl.zsh $(DESTDIR)$(ZSHDIR)/_nvmeofctl
	$(INSTALL) -D -m 644 completions/nvmeofctl.fish $(DESTDIR)$(DATADIR)/fish/vendor_completions.d/nvmeofctl.fish

clean: ## remove what was built, and .venv
	rm -rf build .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
	find nvmeofd tests -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
