# Everything runs inside .venv, which these commands make themselves. `make help` lists them.

PYTHON ?= python3
PORT   ?= 8000
NB     ?=
NAME   ?=
URL    ?=
SITE   ?=
INSTALL ?=
HW     ?=
SUB    ?=
CHAPTER ?=
FILE   ?=
HASHES ?=
# What the caller gives reaches the recipes as text, in their environment: neither make nor a shell
# may run what stands in it.
override PYTHON := $(value PYTHON)
override PORT := $(value PORT)
override NB := $(value NB)
override NAME := $(value NAME)
override URL := $(value URL)
override SITE := $(value SITE)
override INSTALL := $(value INSTALL)
override HW := $(value HW)
override SUB := $(value SUB)
override CHAPTER := $(value CHAPTER)
override FILE := $(value FILE)
override HASHES := $(value HASHES)
export PYTHON PORT NB NAME URL SITE INSTALL HW SUB CHAPTER FILE HASHES

BIN := .venv/bin
# An environment that was copied or moved would run the library at its old place, and one that lost
# its Python or its packages nothing: `stale`, if there is one like that, makes it again. One whose
# installation was cut short is completed.
ifneq ($(wildcard .venv),)
ifneq ($(filter-out help clean,$(MAKECMDGOALS)),)
SOUND := $(if $(wildcard .venv/installed),-I tools/environment.py,-m pip --version)
STALE := $(shell $(BIN)/python $(SOUND) >/dev/null 2>&1 || echo stale)
endif
endif

# Two kernels with many threads each would slow one another down; see fedlib's engine.
export OMP_NUM_THREADS ?= 1
# Warnings of the tools about themselves.
export PYDEVD_DISABLE_FILE_VALIDATION = 1
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help book test check format refresh notebooks slides course grade wheel colab chapter new-chapter site pdf serve browser shake versions benchmark results links retarget lock clean stale
.DEFAULT_GOAL := help

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## (.*)/make \1|\2/' | column -t -s '|'

book: site  ## set up, build the website
	@echo "==> Done. Open _build/html/index.html, or run 'make serve'."

test: site  ## set up, run every test (unit, notebooks, website)
	@$(BIN)/python tools/browser.py --install
	@echo "==> Running every test: library, statements, notebooks cell by cell, website"
	@$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadscope --no-loadscope-reorder

check: .venv/installed  ## quick: lint, format, tests without notebooks and browser; CHAPTER=7 or FILE=fedlib/local.py for one
	@if [ -n "$$CHAPTER$$FILE" ]; then $(BIN)/python tools/check.py "$$CHAPTER" "$$FILE"; else \
	  $(BIN)/ruff check . && $(BIN)/ruff format --check . && \
	  $(BIN)/python -m pytest -q tests fedlib studies -m "not browser and not slow"; fi

format: .venv/installed  ## format code and notebooks
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format --quiet .
	@$(BIN)/python tools/notebooks.py
	@$(BIN)/python tools/interactives.py

refresh: .venv/installed  ## run the notebooks and store their outputs (NB=book/01_fedavg.ipynb for one)
	@echo "==> Running notebooks and storing their outputs"
	@$(BIN)/python tools/refresh.py $$NB

chapter: .venv/installed  ## format, run and test one chapter (NB=book/01_fedavg.ipynb)
	@$(BIN)/python tools/chapter.py "$$NB"

new-chapter: .venv/installed  ## begin a chapter that keeps all rules (NAME=17_my_title)
	@$(BIN)/python tools/new_chapter.py "$$NAME"

notebooks: .venv/installed  ## write the chapters as plain notebooks, for Colab and for students, into dist/
	@$(BIN)/python tools/editions.py dist

slides: .venv/installed assets/vendor/fetched  ## write a deck of slides for each chapter into dist/slides
	@$(BIN)/python tools/slides.py dist/slides

course: .venv/installed  ## write the homeworks, without solutions and hidden checks, into dist/course
	@$(BIN)/python tools/coursework.py make

grade: .venv/installed  ## grade a folder of homework (HW=2 SUB=folder): writes grades.csv into it
	@$(BIN)/python tools/coursework.py grade "$$HW" "$$SUB"

wheel: .venv/installed  ## write the library as one file into dist/: what a class installs without a public repository
	@$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

colab: .venv/installed  ## run the notebooks of dist/colab as Colab does, each alone (NB=01_fedavg for one)
	@$(BIN)/python tools/colab.py $$NB

site: .venv/installed assets/vendor/fetched  ## build the website; every warning is an error
	@echo "==> Building the website"
	@mkdir -p _build
	@$(BIN)/jupyter-book build . --all -W --keep-going -n >_build/site.log 2>&1 || \
	  { grep -E 'WARNING|ERROR' _build/site.log || cat _build/site.log; exit 1; }

pdf: .venv/installed  ## the whole book as _build/book.pdf, which the website then links to; needs TeX
	@for tool in latexmk xelatex xindy; do command -v $$tool >/dev/null || { echo "'make pdf' needs $$tool." \
	  "On Debian or Ubuntu: apt-get install latexmk xindy texlive-xetex texlive-latex-extra" \
	  "texlive-plain-generic texlive-fonts-recommended texlive-fonts-extra fonts-freefont-otf"; exit 1; }; done
	@echo "==> Setting the book (a few minutes)"
	@rm -rf _build/pdf && mkdir -p _build
	@$(BIN)/jupyter-book build . --all -W --keep-going -n --builder latex --path-output _build/pdf >_build/pdf.log 2>&1 || \
	  { grep -E 'WARNING|ERROR' _build/pdf.log || cat _build/pdf.log; exit 1; }
	@$(MAKE) --no-print-directory -C _build/pdf/_build/latex LATEXMKOPTS=-interaction=nonstopmode >_build/pdf.log 2>&1 || \
	  { grep -A 3 '^!' _build/pdf.log || tail -20 _build/pdf.log; exit 1; }
	@mv _build/pdf/_build/latex/book.pdf _build/book.pdf
	@echo "==> Done: _build/book.pdf"

serve: site  ## build the website and serve it on this machine
	@echo "==> http://127.0.0.1:$$PORT (stop with Ctrl-C)"
	@$(BIN)/python -m http.server "$$PORT" --bind 127.0.0.1 --directory _build/html

browser: site  ## build the website and open every page in Chromium
	@echo "==> Opening every page in Chromium"
	@FEDLIB_REQUIRE_BROWSER=1 $(BIN)/python -m pytest tests/test_site.py

versions:  ## test with the oldest supported packages, and with Colab's (NAME=oldest for one)
	@"$$PYTHON" tools/versions.py $$NAME

shake: .venv/installed  ## run the notebooks as other processors would; nothing printed may change
	@echo "==> Running every notebook under every setting that this processor can run"
	@$(BIN)/python tools/shake.py

benchmark: .venv/installed  ## time fedlib and other simulators on the same work (45 minutes)
	@echo "==> Timing fedlib and other simulators; leave the machine alone meanwhile"
	@$(BIN)/python -m benchmarks

results: .venv/installed _build/accountant/installed  ## re-run every stored experiment (3 hours, long_run 15 more); NAME=one_step for one; resumes
	@for name in $${NAME:-puzzle one_step fine_tuning inside transfer neighbours federation privacy long_run}; do \
	  echo "==> $$name"; PYTHONPATH=_build/accountant $(BIN)/python -m studies "$$name" || exit 1; done

# The accountant of differential privacy asks for older packages than the book has, but needs none.
_build/accountant/installed: | .venv/installed
	@$(BIN)/python -m pip install --quiet --no-deps --target _build/accountant \
	  dp-accounting==0.6.0 absl-py==2.5.1 dm-tree==0.1.10
	@mkdir -p _build/accountant && touch $@

links: .venv/installed  ## ask every external link of the book whether it still answers
	@echo "==> Checking external links"
	@$(BIN)/jupyter-book build . --builder linkcheck

retarget: .venv/installed  ## point every link at another repository (URL=its address, SITE=its website's)
	@$(BIN)/python tools/retarget.py "$$URL"

lock: .venv/installed  ## pin what is installed, after a change of requirements.txt; HASHES=1 installs with hashes checked
	@$(BIN)/python tools/lock.py

clean:  ## remove what the other commands made, the environment too
	rm -rf _build dist .venv assets/vendor *.egg-info .pytest_cache .ruff_cache

stale:
	@echo "==> .venv was made for another folder, or is broken: making it again"
	@rm -rf .venv

.venv/bin/python: $(STALE)
	@"$$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
	  "'$$PYTHON' is not Python 3.11 or newer. Use: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@"$$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || { echo \
	  "'$$PYTHON' lacks the venv module. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "==> Making the environment .venv with $$("$$PYTHON" --version)"
	@"$$PYTHON" -m venv .venv

.venv/installed: requirements.txt constraints.txt requirements-lock.txt pyproject.toml $(STALE) | .venv/bin/python
	@echo "==> Installing requirements.txt into .venv (a minute or more: PyTorch is large)"
	@if [ -n "$$HASHES" ]; then \
	  $(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-lock.txt && \
	  $(BIN)/python -m pip install --quiet --no-deps --editable .; \
	else \
	  $(BIN)/python -m pip install --quiet --requirement requirements.txt --constraint constraints.txt; \
	fi || { echo \
	  "Installing failed: see pip's message above. It needs the network; afterwards nothing does."; exit 1; }
	@touch $@

assets/vendor/fetched: assets/package-lock.json tools/vendor.py | .venv/installed
	@echo "==> Fetching MathJax and the widget scripts that the site serves itself"
	@$(BIN)/python tools/vendor.py || { echo \
	  "Fetching failed: see npm's message above. It needs the network; afterwards nothing does."; exit 1; }
	@touch $@
