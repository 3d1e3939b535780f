# What CI runs is what a person runs: demo, test, lint, bench. Each sets up what it needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test lint bench callgrind fuzz sanitize crash crash-long socketcan arm64 containers containers-arm64 offline-month
.PHONY: fleet-spark fleet-scale prerelease packages build clean node genconfig

demo: $(READY)
	$(BIN)/bordnetz demo

test: packages $(READY)
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m bench

# Instructions a frame, the same on every run: over 10 % more than bench/callgrind.json fails.
callgrind: packages $(READY)
	$(BIN)/python -m bench.callgrind

# Debian packages for tests that skip without them; by apt if this is root.
packages:
	@.ci/packages

# At most so many seconds, and inputs (-1: any), for each target, on the kernels that clang has instrumented. A seed gives the
# same inputs again, as long as out/fuzz/corpus, which keeps what they found, is the same.
FUZZ_SECONDS ?= 10
FUZZ_RUNS ?= -1
FUZZ_SEED ?= 0
fuzz: packages $(READY)
	$(SANITIZED)
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --runs $(FUZZ_RUNS) --seed $(FUZZ_SEED)

# The proof that nothing is lost, in six layers: docs/durability.md. SEED repeats a run.
crash crash-long: $(READY)
	$(BIN)/python -m tests.crash --$(if $(filter %-long,$@),long,short) $(if $(SEED),--seed $(SEED))

# Thirty days without a network in scaled time: a quota of 256 MiB that is used up; some minutes.
offline-month: $(READY)
	$(BIN)/python -m tests.offline_month

# The kernels' tests under AddressSanitizer and UndefinedBehaviorSanitizer. SANITIZE_DATA=<folder>: on recordings too, which
# takes some minutes more.
sanitize: packages $(READY)
	$(SANITIZED)
	$(BIN)/python -m tests.fuzz.sanitized -n 2 $(addprefix tests/test_,$(addsuffix .py,$(KERNEL_TESTS)))

KERNEL_TESTS = golden logs transport condition reduce block codec codec_signals decode events sources
# Only what changed is built again.
SANITIZED = if command -v clang >/dev/null; then CC=clang EDGE_SANITIZE=1 $(BIN)/python setup.py -q build_ext \
	  --build-lib build/sanitize --build-temp build/sanitize/tmp; fi

# A generated fleet on Spark in two worker processes, one of them killed half-way, and how fast that is; needs Java 17.
fleet-spark: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat -e '.[dev,spark]'
	$(BIN)/python -m pytest -q tests/test_fleet_spark.py
	$(BIN)/python -m bench.fleet_spark

# A day of 10 to 1,000 generated vehicles to tables: what it costs, as bench/fleet_scale.png. Some gigabytes for the time.
fleet-scale: $(READY)
	$(BIN)/python -m bench.fleet_scale

build: $(READY)

# Debian packages that a target needs: installed where this may be done, else the target says what is missing.
APT = test "$$(id -u)" != 0 || dpkg -s $(1) >/dev/null 2>&1 || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
  apt-get -o DPkg::Lock::Timeout=300 install -y -qq --no-install-recommends $(1) >/dev/null; } || true

# The collector on real SocketCAN, in user-mode-linux.
socketcan: $(READY)
	@$(call APT,user-mode-linux kmod iproute2 can-utils)
	$(BIN)/python -m tests.uml build/uml

# The kernels for arm64, tested on an emulated processor.
arm64: $(READY)
	@$(call APT,mmdebstrap qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
	tests/arm64/run build/arm64 $(BIN)/python

# The images of both modules, built and run as locked-down containers in a Docker engine of our own.
containers: $(READY)
	@$(call APT,docker.io cgroupfs-mount mmdebstrap)
	$(BIN)/python -m tests.containers build/docker

# The same for arm64v8: cross-compiled, built and run on an emulated processor.
containers-arm64: $(READY)
	@$(call APT,docker.io cgroupfs-mount mmdebstrap qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross)
	$(BIN)/python -m tests.containers build/docker arm64v8

# The device SDK's pre-release, which needs paho 2, against the simulator; the project itself stays on 2.14.
prerelease: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target build/prerelease \
	  'azure-iot-device==2.15.0rc1' 'paho-mqtt>=2,<3'
	PYTHONPATH=build/prerelease $(BIN)/python -m pytest -q \
	  $(patsubst %,tests/test_simulat%.py,$(SDK_TESTS))

SDK_TESTS = or_connections or_methods or_telemetry or_twin or_workload e_routes e_service

# Whether iotedgedev makes the same manifest of our template as we do.
genconfig: $(READY)
	$(BIN)/python -m tests.genconfig build/genconfig

# Node's azure-iot-device and Azurite, which tests then run; without them those tests skip.
node:
	@.ci/packages node
	@command -v npm >/dev/null || { echo "node: skipped: there is no npm: apt-get install nodejs npm"; exit 0; }; \
	  npm install --prefix tests/node --no-audit --no-fund --loglevel=error --fetch-timeout=60000 --fetch-retries=1 || \
	  echo "node: skipped: npm cannot install what tests/node/package.json names"

# The kernels are built again when one of their sources changes. editable_mode=compat: a plain path instead of an import
# hook, which every process would pay 10 ms for.
$(READY): pyproject.toml setup.py $(wildcard $(addprefix cy_core/,*.pyx *.pxd *.h codec/*.pyx codec/*.pxd))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || { \
	  echo "python3 with venv is needed: apt-get install python3-venv python3-dev gcc" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --config-settings editable_mode=compat -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info cy_core/*.c cy_core/*.so cy_core/codec/*.c cy_core/codec/*.so
