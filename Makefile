# make demo | test | test-all | lint | gpu. Each makes .venv first where it is missing or older than its pins.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all lint gpu mlflow system-deps

PYTHON ?= $(firstword $(shell command -v python3.11 python3))
WARM_LIMIT_S ?= 600
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
export OMP_NUM_THREADS := 1
export RAY_USAGE_STATS_ENABLED := 0
export DO_NOT_TRACK := true
export HF_HUB_DISABLE_TELEMETRY := 1
export MLFLOW_DISABLE_TELEMETRY := true
unexport PYTHONPATH VIRTUAL_ENV PYTHONHOME

help:
	@echo "make demo      train a small model on real digits and print its token curve"
	echo "make test      tests without the long proofs"
	echo "make test-all  all tests that need no GPU"
	echo "make lint      ruff and pyright"
	echo "make gpu       tests and kernel benchmarks on a CUDA device"
	echo "make mlflow    tracking server on http://127.0.0.1:5000 over ./runs"
	echo "make system-deps  Prometheus and Chromium for the tests that use them (Debian, as root)"

setup: .venv/.ready

.venv/.ready: pyproject.toml constraints.txt
	@python="$(PYTHON)"
	if ! "$${python:-false}" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then
	  echo "tokendial needs Python 3.11, found '$${python:-none}'; install it or run make PYTHON=/path/to/python3.11" >&2
	  exit 1
	fi
	if ! "$$python" -c 'import os, sys, sysconfig
	sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
	  echo "Python.h is missing; install Python 3.11's headers (python3.11-dev)" >&2
	  exit 1
	fi
	for tool in g++ make; do
	  command -v "$$tool" >/dev/null || { echo "$$tool is missing; install a C++ compiler and make" >&2; exit 1; }
	done
	$(BIN)/python -m pip --version >/dev/null 2>&1 || "$$python" -m venv --clear .venv
	echo "set-up: installing pinned packages into .venv (some minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[train,search,serve,dev]'
	$(BIN)/python -m tokendial.environment warm $(WARM_LIMIT_S)
	touch $@
	echo "set-up took $$SECONDS s"

demo: .venv/.ready
	@$(BIN)/tokendial train digits.demo

# Two processes side by side, as either half waits much of its time: the tests that share one Ray cluster, and all
# others. The first shows what it says at once, the second when both have ended.
test: .venv/.ready
	@said="$$(mktemp)"
	trap 'rm "$$said"' EXIT
	$(BIN)/python -m pytest -m "not ray_cluster and not slow and not gpu" & others=$$!
	$(BIN)/python -m pytest -m "ray_cluster and not slow and not gpu" >"$$said" 2>&1 & sharing=$$!
	# Ctrl-C reaches both by itself; this shell stays to show what they say of it.
	trap wait INT
	trap 'kill $$others $$sharing; wait' TERM
	first=0 second=0
	wait $$others || first=$$?
	echo
	echo "The tests that share one Ray cluster, once they have ended:"
	wait $$sharing || second=$$?
	cat "$$said"
	# 5: none of its tests was chosen, as by PYTEST_ADDOPTS="-k curve".
	case "$$first $$second" in "0 0" | "0 5" | "5 0") ;; *) exit 1 ;; esac

# One process: proofs of this length are about what happens in seconds, and some train on all of the machine.
test-all: .venv/.ready
	@$(BIN)/python -m pytest -m "not gpu"

lint: .venv/.ready
	@$(BIN)/ruff check
	$(BIN)/pyright

gpu: .venv/.ready
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[gpu]'
	# Both, whatever comes of the first.
	kernels=0 rest=0
	$(BIN)/python -m tokendial_kernels.bench --device cuda || kernels=$$?
	$(BIN)/python -m pytest -m gpu tests/unit || rest=$$?
	exit $$((kernels | rest))

# Only requests to these hosts are answered, no jobs run on the server, and no pickle is loaded.
mlflow: .venv/.ready
	@mkdir -p "$${TOKENDIAL_HOME:-runs}"
	cd "$${TOKENDIAL_HOME:-runs}"
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_ALLOW_PICKLE_DESERIALIZATION=false exec $(CURDIR)/$(BIN)/mlflow server \
	  --host 127.0.0.1 --port $${PORT:-5000} --workers 2 --allowed-hosts 'localhost:*,127.0.0.1:*' \
	  --backend-store-uri sqlite:///mlflow.db --artifacts-destination mlartifacts

system-deps:
	@apt-get update
	apt-get install -y --no-install-recommends prometheus chromium
	# The tests start Prometheus themselves, on loopback; Debian's service would listen on every interface.
	if [ -d /run/systemd/system ]; then systemctl disable --now prometheus; fi
