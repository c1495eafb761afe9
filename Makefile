# `make demo` and `make test` set up what they need in .venv: what requirements/*.lock name, file for file by its hash.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# First of all, since a long installation would fail late: the locks are of one Python.
LOCKED_PYTHON := 3.11
ifneq ($(filter-out clean lock swagger-ui,$(or $(MAKECMDGOALS),demo)),)
ASKED_PYTHON := $(or $(wildcard $(BIN)/python),$(PYTHON))
FOUND_PYTHON := $(shell { $(ASKED_PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' || echo not there; } 2>/dev/null)
ifneq ($(FOUND_PYTHON),$(LOCKED_PYTHON))
$(error make needs Python $(LOCKED_PYTHON), and $(ASKED_PYTHON) is $(FOUND_PYTHON): \
	run `make PYTHON=python$(LOCKED_PYTHON)`$(if $(wildcard $(BIN)/python), after `make clean`); for other Pythons see \
	docs/install.md)
endif
endif

# --no-compile: writing bytecode of everything takes longer than importing the part that is used
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# The locks are complete, so nothing is looked for beside them; `pip check` tells if that is not so. What comes as source
# is built with what the lock has, not with what a build would fetch without a hash.
INSTALL := $(PIP_INSTALL) --require-hashes --no-deps --no-build-isolation --use-pep517
# PyTorch's build for CPUs where pip finds it, else PyPI's with its CUDA. One lock of both would not do: pip prefers the
# file whose index tells the right hash, and a folder of PIP_FIND_LINKS tells none.
# OpenVINO says that it needs its telemetry, which no lock has.
CHECK_INSTALLED := ! $(BIN)/python -m pip check | grep -v -e '^No broken requirements' -e '^openvino .* openvino-telemetry'
CPU_TORCH := $(shell sed -n 's/^\(torch==[^ ]*\).*/\1/p' requirements/cpu.lock)
TORCH_LOCK = $(if $(shell $(PIP_INSTALL) --dry-run --no-deps '$(CPU_TORCH)' 2>/dev/null && echo found),cpu,cuda)
UV_VERSION := 0.13.9
SWAGGER_UI_VERSION := 5.35.0
SWAGGER_UI := server/medimage_server/endpoint/swagger_ui
SWAGGER_UI_FILES := LICENSE NOTICE swagger-ui-bundle.js swagger-ui-bundle.js.LICENSE.txt swagger-ui.css
export ORT_DISABLE_TELEMETRY := 1

# Triton's python backend needs libpython, which Debian has in a package of its own: unpacked into .venv/lib, which takes
# no root. If that cannot be done, the second FIND_TRITON says what to install.
FIND_TRITON := $(BIN)/python -c 'import sys; from medimage_server import installation; \
	sys.excepthook = lambda kind, error, trace: print(f"Error: {error}", file=sys.stderr); installation.find_triton()'
LIBPYTHON = libpython$(shell $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])')
GET_LIBPYTHON = { cd $(VENV) && apt-get download --quiet $(LIBPYTHON) && dpkg --extract $(LIBPYTHON)_*.deb deb \
	&& cp --no-dereference deb/usr/lib/*/$(LIBPYTHON).so.1.0 lib/ && rm -r deb $(LIBPYTHON)_*.deb; } || true

.PHONY: demo test test-soak check fix docs lock perf perf-gpu release swagger-ui clean

demo: $(VENV)/.runtime  ## the whole way on a real Triton, with the phantom checkpoint
	$(BIN)/medimage demo --output build/demo

# tests/conftest.py says what a worker gets. Without bytecode on the disk each of the hundreds of processes that they
# start would compile what it imports: four seconds for PyTorch. Three workers keep two cores busy, since the two with
# real servers often wait. Each process has one thread: PyTorch's threads, which wait for one another busily, would take
# half as much again.
unexport PYTHONDONTWRITEBYTECODE
test: export OMP_NUM_THREADS := 1
test: $(VENV)/.dev  ## the tests, on three workers
	MEDIMAGE_REQUIRE_TRITON=1 $(BIN)/python -m pytest --numprocesses 3 --dist loadscope --no-loadscope-reorder -m "not soak"

test-soak: $(VENV)/.dev  ## the tests that take minutes, and the whole of those that `make test` does in part
	MEDIMAGE_REQUIRE_TRITON=1 $(BIN)/python -m pytest -m soak

check: $(VENV)/.dev  ## lint, format, types; changes nothing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: $(VENV)/.dev  ## what check asks for, as far as a tool can do it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

CASE ?= suite
perf: $(VENV)/.dev  ## measure a case, as in `make perf CASE="scaling --quick"`; by default the suite, in about 20 minutes
	$(BIN)/python -m perf $(CASE)

perf-gpu: $(VENV)/.perf-gpu  ## the suite on a GPU, in fp16; puts onnxruntime-gpu in place of onnxruntime
	$(BIN)/python -m perf suite --device cuda

docs: $(VENV)/.docs  ## the site in build/docs; fails at any warning, and if a table differs from perf/results
	$(BIN)/python -m perf page --check
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet docs build/docs

lock:  ## write requirements/*.lock anew; options of uv as in `make lock UPGRADE="--upgrade-package numpy"`
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	PATH=$(CURDIR)/build/lock/bin:$$PATH python requirements/lock.py $(UPGRADE)

# The wheel is built of the sdist, as whoever builds it again will; the time stamps are those of the commit.
release: export SOURCE_DATE_EPOCH := $(shell git log -1 --format=%ct 2>/dev/null)
release: $(VENV)/.dev  ## wheel, sdist and bill of materials in dist/, looked at by twine and installed anew
	rm -rf dist build/release && mkdir -p build/release
	$(BIN)/python -m hatchling build --target sdist --directory dist
	tar --extract --gzip --file dist/*.tar.gz --directory build/release --strip-components 1
	cd build/release && $(CURDIR)/$(BIN)/python -m hatchling build --target wheel --directory $(CURDIR)/dist
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python requirements/sbom.py dist/medimage-triton.cdx.json
	$(BIN)/python -m pytest tests/test_release.py -m soak

swagger-ui:  ## fetch anew, with npm, what shows the API at /docs; npm compares the package with the registry's hash
	mkdir -p build
	npm pack --pack-destination build swagger-ui-dist@$(SWAGGER_UI_VERSION)
	tar --extract --gzip --file build/swagger-ui-dist-$(SWAGGER_UI_VERSION).tgz --directory $(SWAGGER_UI) --no-same-owner \
		--no-same-permissions --touch --strip-components 1 $(addprefix package/,$(SWAGGER_UI_FILES))
	cd $(SWAGGER_UI) && { echo "# swagger-ui-dist $(SWAGGER_UI_VERSION) of npm; written by \`make swagger-ui\`" \
		&& sha256sum $(SWAGGER_UI_FILES); } > SHA256SUMS

clean:
	rm -rf $(VENV) build

$(BIN)/python:
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }  # Debian has venv in the package python3-venv

$(VENV)/.runtime: pyproject.toml $(foreach name,runtime cpu cuda,requirements/$(name).lock) | $(BIN)/python
	$(INSTALL) --requirement requirements/runtime.lock --requirement requirements/$(TORCH_LOCK).lock
	$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	$(CHECK_INSTALLED)
	@$(FIND_TRITON) 2>/dev/null || $(GET_LIBPYTHON)
	@$(FIND_TRITON)
	touch $@

$(VENV)/.dev: requirements/dev.lock requirements/openvino.lock $(VENV)/.runtime
	$(INSTALL) --requirement requirements/dev.lock --requirement requirements/openvino.lock
	$(CHECK_INSTALLED)
	touch $@

$(VENV)/.docs: requirements/docs.lock $(VENV)/.dev
	$(INSTALL) --requirement $<
	$(CHECK_INSTALLED)
	touch $@

# onnxruntime has no CUDA, and onnxruntime-gpu has the same files: one of them must go before the other comes, also an
# older onnxruntime-gpu that .runtime has written over. It computes on a CPU as well. 1.31.1 is built for CUDA 13, and
# takes CUDA and cuDNN from a PyTorch for CUDA 13.
$(VENV)/.perf-gpu: requirements/onnxruntime-gpu.lock $(VENV)/.dev
	$(BIN)/python -m pip uninstall --quiet --yes onnxruntime onnxruntime-gpu
	$(INSTALL) --requirement $<
	touch $@
