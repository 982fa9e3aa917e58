# make demo | test | setup | bench | lint | gpu        two cores, no GPU and no network beyond the package index needed
# make demo METHODS=sam,esam    some of the methods of examples/digits_methods.py
# make bench FULL=1        every method on every workload, about half an hour
#
# ENV=system uses the python and torch that are already there and installs nothing; otherwise .venv is made with pinned versions.

ENV ?= venv
TORCH = torch==2.13.0
PEER = pytorch_optimizer==4.1.0
# No dependencies: they would replace torch. What these import beside it is pinned here; scipy comes with scikit-learn.
PEERS_SAMPLES = opacus==1.6.0 backpack-for-pytorch==1.7.1 unfoldNd==0.2.3 einops==0.8.2 opt_einsum==3.4.0

ifeq ($(ENV),system)
PY = PYTHONPATH="$(CURDIR)" python3
INSTALLED =
else
PY = .venv/bin/python
INSTALLED = .venv/installed
endif
SOURCES = setup.py pyproject.toml $(wildcard csrc/*.cpp csrc/*/*)
# Two processes where pytest-xdist is there; a file stays in one of them, and what it compiles with it. Threads that wait must not spin.
PARALLEL = $(shell $(PY) -c "import xdist" 2>/dev/null && echo "-n 2 --dist loadfile")
RUN_TESTS = OMP_WAIT_POLICY=PASSIVE SAM_KERNELS_REQUIRE=reference,cpp,triton $(PY) -m pytest $(PARALLEL)

.PHONY: demo test setup bench lint gpu clean

demo: build/done
	$(PY) examples/digits.py $(if $(METHODS),--methods $(METHODS))

test: build/done
	$(RUN_TESTS)

setup: build/done

bench: build/done
ifneq ($(ENV),system)
	$(PY) -m pip install -q --no-deps $(PEER) $(PEERS_SAMPLES)
endif
	mkdir -p bench/.results docs
	$(PY) -m pytest bench $(if $(FULL),--full) --benchmark-json=bench/.results/cpu.json
	$(PY) bench/report.py bench/.results/cpu.json --readme README.md --plot docs/bench.png

lint: build/done
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# On a CUDA machine: build, tests on the device, sanitizer, times, report, in stages; without one the compile-time checks.
# make gpu STAGE=bench or STAGE=build,tests: some of them; STAGE=tune: the experiments of bench/TUNING.md.
gpu: $(INSTALLED)
	$(PY) bench/gpu_stages.py --env $(ENV) --stage "$(STAGE)"

# torch first and alone, so that nothing later can replace it; then the rest with it pinned.
.venv/installed: requirements.txt
	test -x .venv/bin/python || python3 -m venv .venv
	.venv/bin/python -c "import torch" 2>/dev/null || .venv/bin/python -m pip install -q $(TORCH)
	.venv/bin/python -m pip install -q -r requirements.txt
	touch $@

build/done: $(INSTALLED) $(SOURCES)
ifeq ($(ENV),system)
	$(PY) setup.py -q build_ext --inplace
else
	@mkdir -p build
	.venv/bin/python -m pip install --no-deps --no-build-isolation -v -e . > build/install.log 2>&1 || (cat build/install.log; false)
	@grep -o "sam_kernels: .*" build/install.log
	.venv/bin/python -c "import sam_kernels"
endif
	mkdir -p build && touch $@

clean:
	rm -rf build .venv out sam_kernels/*.so sam_kernels/_build_info.py
