# Commands, each enough on a machine with Python 3.11 or newer and make:
#   make study             install into .venv, run the embedded study (STUDY=name runs another one), print where its report is
#   make test              install into .venv and run ruff, mypy and pytest
# What takes longer or needs more, installed where it is missing (by apt, as root on Debian or Ubuntu):
#   make test-hydra-next   the tests of what touches Hydra on its coming release, 1.4
#   make test-postgres     a study in a PostgreSQL
#   make test-slurm        a study on a Slurm of one node
#   make test-ray          a study on a local Ray
#   make test-gpu          what holds on a GPU; skipped where there is none
#   make test-kills        kill real sweeps 30 times, on a journal, sqlite and PostgreSQL: ten minutes
#   make bench             bench-loop, -peers, -scaling, -sweep and -heads: an hour or more
#   make bench-loop        full fine-tuning against bare loops
#   make bench-peers       Fourfold beside Lightning, Hugging Face Trainer, fastai and Keras (installed into .venv/peers)
#   make bench-scaling     cost and memory for 100 to 10,000 images, and 1 to 64 runs
#   make bench-gpu         fine-tuning, and what is frozen, on a GPU; skipped where there is none
#   make bench-sweep       what a sweep costs beside its runs, per trial
#   make bench-heads       what a sweep of heads on one frozen backbone costs, beside the least that it could: ten minutes
#   make bench-pruning     what pruning saves, and whether it finds the same best: some ten minutes
#   make test-slow         place the embedded targets with their pretrained backbone: some minutes
#   make test-exhaustive   cut every builder of torchvision and one model of each family of timm; try 200 random set-ups, and sweeps
# They share one .venv and install again only after pyproject.toml or constraints.txt has changed.

PYTHON ?= python3
STUDY ?= quadrants_embedded
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: study test test-hydra-next test-postgres test-slurm test-ray test-gpu test-kills test-exhaustive test-slow clean
.PHONY: bench bench-loop bench-peers bench-scaling bench-gpu bench-sweep bench-heads bench-pruning
.DELETE_ON_ERROR:

study: $(VENV)/.study
	@$(BIN)/fourfold -m experiment=$(STUDY)

# One thread per process: PyTorch's threads slow each other down when several processes share the cores.
test: $(VENV)/.test
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy & types=$$!; OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal; tests=$$?; \
		wait $$types && exit $$tests

test-exhaustive: $(VENV)/.test
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m exhaustive

test-gpu: $(VENV)/.test
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m gpu

test-slow: $(VENV)/.test
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# Beside the environment, whose Hydra stays as it is.
HYDRA_NEXT := hydra-core==1.4.0rc3 omegaconf==2.4.1rc1 hydra-joblib-launcher==1.4.0rc3
test-hydra-next: $(VENV)/.test
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/hydra-next $(HYDRA_NEXT)
	@PYTHONPATH=$(CURDIR)/$(VENV)/hydra-next OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal \
		tests/test_compose.py tests/test_cli.py tests/test_jobs.py tests/test_multirun.py tests/study/test_space.py

test-postgres: MARKER = postgres
test-kills: MARKER = kills
test-postgres test-kills: $(VENV)/.test
	@command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -q && apt-get install -qy --no-install-recommends postgresql; } || \
		{ echo "PostgreSQL's initdb is missing (Debian and Ubuntu: apt install postgresql)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[postgresql]'
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m $(MARKER)

test-slurm: $(VENV)/.test
	@PATH=$$PATH:/usr/sbin; command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null || \
		{ [ "$$(id -u)" = 0 ] && apt-get update -q && \
		apt-get install -qy --no-install-recommends slurm-wlm slurmctld slurmd munge; } || \
		{ echo "Slurm is missing (Debian and Ubuntu: apt install slurm-wlm slurmctld slurmd munge)" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[slurm]'
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -m slurm

# hydra-ray-launcher wants older releases of three packages than constraints.txt has, so Ray gets an environment of its own, which
# lies on top of the other one.
RAY := $(VENV)/ray
test-ray: $(VENV)/.test
	@$(BIN)/python -m venv $(RAY)
	@site() { $$1 -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }; \
		echo "import site; site.addsitedir('$$(site $(BIN)/python)')" > "$$(site $(RAY)/bin/python)/below.pth"
	@grep -vE '^(cloudpickle|joblib|python-dateutil)==' constraints.txt > $(RAY)/constraints.txt
	@$(RAY)/bin/python -m pip install --quiet --disable-pip-version-check -c $(RAY)/constraints.txt -e '.[ray]'
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(RAY)/bin/python -m pytest -m ray

bench: bench-loop bench-peers bench-scaling bench-sweep bench-heads

bench-loop: $(VENV)/.study
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python scripts/bench/full_finetuning.py
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python scripts/bench/full_finetuning.py --accuracy

bench-peers: $(VENV)/.study
	@$(BIN)/python scripts/bench/peers.py full classifier_only sweep
	@$(BIN)/python scripts/bench/peers.py last_blocks --images 100

bench-scaling: $(VENV)/.study
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python scripts/bench/scaling.py

bench-gpu: $(VENV)/.study
	@$(BIN)/python scripts/bench/gpu.py

bench-sweep: $(VENV)/.test
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python scripts/bench/sweep_overhead.py

bench-heads: $(VENV)/.test
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python scripts/bench/classifier_only.py

bench-pruning: $(VENV)/.study
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python scripts/bench/pruning.py

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache

$(VENV)/.study: pyproject.toml constraints.txt
	$(call install,.)
	@touch $@

$(VENV)/.test: pyproject.toml constraints.txt
	$(call install,.[dev])
	@touch $(VENV)/.study $@

define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	{ echo "Fourfold needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) -V 2>/dev/null || echo missing): name another, as in make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	{ echo "$(PYTHON) cannot make virtual environments: install its venv module (Debian and Ubuntu: apt install python3-venv)" >&2; exit 1; }
@echo "Installing into $(VENV): the first time downloads PyTorch and takes some minutes."
@$(PYTHON) -m venv $(VENV)
@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '$(1)'
@echo "Installed."
endef
