# What a user types. Every target installs first what it lacks (scripts/setup).
# -I: whatever PYTHONHOME, PYTHONPATH and the like a user has, the lab has its own.
.PHONY: help setup lab soak clean-lab test test-machines docs fuzz mutate mutate-shim tamper coverage interop bench-vhdtool bench-shim bench-startup bench-history chaos pyz lint lock

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 12

setup: ## install Debian packages and .venv
	@scripts/setup

lab: setup ## migrate once for each case and report; STRATEGY= STEPS= SEED= GUARD= REPEATS= ... LAB=xen KEEP=1
	@.venv/bin/python -I scripts/lab run

soak: setup ## N=10 seeds for each case: medians, and what N runs allow to state
	@.venv/bin/python -I scripts/lab soak

clean-lab: setup ## end the hosts of `make lab`; leaves nothing behind
	@.venv/bin/python -I scripts/lab clean

lint: setup ## ruff, mypy, import-linter, ansible-lint
	@scripts/lint

test: setup ## every check that needs no special hardware
	@scripts/test

test-machines: setup ## whole labs on emulated machines, KVM and Xen; half an hour and more
	@.venv/bin/python -m pytest -q -x tests/machines

coverage: setup ## which lines of vhdtool/ the unit tests reach; HTML in build/coverage
	@.venv/bin/python -m pytest -q -n auto --cov=vhdtool --cov-branch --cov-report=term:skip-covered \
	    --cov-report=html:build/coverage tests/unit

fuzz: setup ## N=10000 damaged images through every command that reads
	@.venv/bin/python -m tests.fuzz.fuzz_vhd --cases $(or $(N),10000) --keep build/fuzz

tamper: setup ## hundreds of changes to records, RUNS="dir ..." or of fresh labs; none judged wrongly
	@.venv/bin/python -m tests.tamper $(RUNS) $(if $(SAMPLE),--sample $(SAMPLE)) --seed $(or $(SEED),1)

mutate: setup ## mutants of the oracles; each seen by planted faults or by tests. RUNS= COUNT= SEED=
	@.venv/bin/python -m tests.mutate $(RUNS) $(if $(COUNT),--count $(COUNT)) --seed $(or $(SEED),1)

interop: setup ## who reads whose images: writes docs/interop.md
	@.venv/bin/python -m tests.interop.interop_matrix

bench-vhdtool: setup ## speed of check and convert against qemu-img, on tmpfs
	@PYTHONPATH=. .venv/bin/python benchmarks/vhdtool_bench.py --write

bench-shim: setup ## the shim beside qemu-nbd, on tmpfs and with O_DIRECT; table in benchmarks/results
	@.venv/bin/python benchmarks/shim.py --out benchmarks/results/shim.md $(BENCH)

bench-startup: setup ## start to first reply, memory and idle time for 2040 GiB
	@.venv/bin/python benchmarks/startup.py --out benchmarks/results/startup.md $(BENCH)

bench-history: setup ## vhdtool history on 1000 runs
	@.venv/bin/python benchmarks/history.py --out benchmarks/results/history.md $(BENCH)

mutate-shim: setup ## real cases on shims that are wrong on purpose: MUTANT=name,... SEEDS=3
	@.venv/bin/python -m tests.mutate_shim --seeds $(or $(SEEDS),3) \
	    --mutants "$(MUTANT)" $(if $(OUT),--out $(OUT))

chaos: setup ## N=500 kills of a shim, anywhere; nothing acknowledged may be lost
	@.venv/bin/python -m tests.interop.shim_chaos --kills $(or $(N),500)

pyz: setup ## build/vhdtool.pyz: vhdtool and vhd-util in one file, for a rescue shell
	@.venv/bin/vhdtool bundle --pyz --out build/vhdtool.pyz

docs: setup ## the documentation as a site, in build/site; warnings are errors
	@NO_MKDOCS_2_WARNING=1 .venv/bin/mkdocs build --strict --quiet --site-dir build/site

lock: ## for developers: requirements.lock from pyproject.toml (needs uv)
	uv pip compile pyproject.toml --extra lab --extra docs --extra dev --generate-hashes --no-emit-index-url \
	    --no-emit-find-links --no-header --python-version 3.11 -o requirements.lock
