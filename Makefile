# make demo and make test set up everything on a fresh machine; the first run downloads about 3 GB.
UV_VERSION = 0.13.8
# Python 3.10 first (the genuine fairseq). Each candidate is run: a shim may exist and fail. WORKING's second argument is
# the first minor version that is too new.
VERSIONS = $(wildcard $(HOME)/.pyenv/versions/$(1).*/bin/python3) python$(1)
CANDIDATES = $(call VERSIONS,3.10) $(call VERSIONS,3.12) $(call VERSIONS,3.11) python3
WORKING = $(shell for p in $(1); do "$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] < (3, $(2)))' \
          2>/dev/null && { echo "$$p"; break; }; done)
PYTHON ?= $(call WORKING,$(CANDIDATES),13)
NEWEST = $(call WORKING,$(call VERSIONS,3.13) $(call VERSIONS,3.12) $(call VERSIONS,3.11) $(call VERSIONS,3.10),14)
BIN = .venv/bin
# Two spinning OpenMP threads on busy cores are slower than one.
export OMP_NUM_THREADS ?= 1
export UV_HTTP_TIMEOUT ?= 600

.PHONY: demo test lint docs dist results readme figures tour lock test-3.11 test-3.12 test-3.13 test-newest test-plugin-3.11 clean

demo: .venv/.synced
	$(BIN)/daisy demo --out demo-out

# Python starts two dozen times, and compiles torch each time where the environment lets it keep nothing.
test: export PYTHONDONTWRITEBYTECODE =
test: lint
	$(BIN)/python -m pytest -n 2

lint: .venv/.synced
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy daisy

.venv/.synced: requirements.lock pyproject.toml setup.py
	@test -n "$(PYTHON)" || { echo "no working Python 3.10, 3.11 or 3.12 found; set PYTHON=" >&2; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install -q uv==$(UV_VERSION)
	$(BIN)/uv pip sync -q --require-hashes requirements.lock -p $(BIN)/python
	$(BIN)/uv pip install -q --no-deps --no-build-isolation -e . -p $(BIN)/python
	touch $@

# The pages of site/, from README, docs and docstrings; a link or an anchor that leads nowhere fails, but not with --quiet,
# under which mkdocs counts no warnings.
docs: export NO_MKDOCS_2_WARNING = 1
docs: .venv/.synced
	$(BIN)/mkdocs build --strict
	@echo "site/index.html is the first page"

# Wheel and sdist, looked into, and each installed into an empty environment and tried there.
dist: .venv/.synced
	rm -rf dist build .venv-dist
	$(BIN)/uv build -q --no-build-isolation -p $(BIN)/python -o dist .
	$(BIN)/python tools/check_dist.py files dist
	for built in dist/*.whl dist/*.tar.gz; do \
	  $(BIN)/uv venv -q --clear -p $(BIN)/python .venv-dist && \
	  $(BIN)/uv pip install -q -c requirements.lock "$$built" -p .venv-dist/bin/python && \
	  .venv-dist/bin/python tools/check_dist.py installed . || exit 1; \
	done

lock: .venv/.synced
	$(BIN)/uv pip compile -q --universal --generate-hashes --all-extras --no-annotate --no-header --upgrade \
	  pyproject.toml -o requirements.lock

# Trains the small HuBERT and its heads and measures it: days, resumable. Needs the shared recordings.
results: .venv/.synced
	benchmarks/real_run.sh

readme: .venv/.synced
	$(BIN)/python -m benchmarks.readme

# Figures anew from benchmarks/results/*.json; nothing is measured.
figures: .venv/.synced
	$(BIN)/python -m benchmarks.figures

# Runs docs/tour.ipynb, whose outputs are in the repository, anew.
tour: .venv/.synced
	$(BIN)/python -m benchmarks.tour

# The library alone, without fairseq, on the other Pythons: import and an extraction. With the lock's versions, which it
# has for Python 3.11 and 3.12, else with the newest.
test-3.11 test-3.12 test-3.13: test-%: .venv/.synced
	@test -n "$(call WORKING,$(call VERSIONS,$*),14)" || { echo "no Python $* found" >&2; exit 1; }
	rm -rf .venv-$* && "$(call WORKING,$(call VERSIONS,$*),14)" -m venv .venv-$*
	$(BIN)/uv pip install -q -c requirements.lock . -p .venv-$*/bin/python
	cd .venv-$* && bin/python -c "import daisy; print(daisy.__version__)" && \
	  bin/daisy extract ../daisy/assets/demo --out extracted --overwrite

# The newest torch, NumPy and transformers, without torchaudio, on the newest Python found: all tests that need neither
# fairseq nor s3prl, and the library's speed beside transformers'. Downloads torch, 3 GB.
test-newest: .venv/.synced
	@test -n "$(NEWEST)" || { echo "no Python 3.10 to 3.13 found" >&2; exit 1; }
	rm -rf .venv-newest && "$(NEWEST)" -m venv .venv-newest
	$(BIN)/uv pip install -q --upgrade -e ".[hf,analysis,test]" -p .venv-newest/bin/python
	.venv-newest/bin/python --version
	$(BIN)/uv pip list -q -p .venv-newest/bin/python | \
	  grep -E '^(numpy|scikit-learn|scipy|soxr|torch|torchaudio|transformers) '
	.venv-newest/bin/python -m pytest
	.venv-newest/bin/python -m benchmarks.speed.latency --quick

# The fairseq plugin on Python 3.11 with the fork of fairseq that supports it; builds the fork, some minutes.
test-plugin-3.11: .venv/.synced
	@test -n "$(call WORKING,$(call VERSIONS,3.11),14)" || { echo "no Python 3.11 found" >&2; exit 1; }
	rm -rf .venv-plugin && "$(call WORKING,$(call VERSIONS,3.11),14)" -m venv .venv-plugin
	$(BIN)/uv pip install -q -c requirements.lock -e ".[fairseq,test]" -p .venv-plugin/bin/python
	.venv-plugin/bin/python -m pytest tests/fairseq_plugins

clean:
	rm -rf .venv .venv-* demo-out site .pytest_cache .mypy_cache .ruff_cache *.egg-info build dist
