# make demo and make test work from a fresh clone; each installs what it needs first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install extras demo test test-all faults audit teachers two-machines check format bench bench-gpu docs docs-check pictures reference comfyui package clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev]'
	@# The networks of ST-LPIPS. Of what the package depends on, nothing is used here.
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt --no-deps stlpips-pytorch
	@# pip would compile on one core; some packages bring files that are no Python, which it passes over too.
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib >/dev/null 2>&1 || true
	@# For the tests that decode in a browser and compile Kotlin, which are skipped, with a message, if these are missing.
	@! command -v npm >/dev/null || npm install --silent --no-audit --no-fund --fetch-retries=0 --fetch-timeout=30000 --prefix .venv/web onnxruntime-web@1.30.0 kotlin-compiler@2.4.20 || true
	@touch $@

extras: .venv/extras    ## converters for ExecuTorch, LiteRT and Core AI: a gigabyte, which is not part of install

.venv/extras: .venv/installed
	$(BIN)/python -m pip install -q --no-compile -c constraints.txt -e '.[dev,executorch,litert,coreai]'
	@$(BIN)/python -m compileall -qq -j 0 .venv/lib >/dev/null 2>&1 || true
	@touch $@

demo: install          ## the whole path on generated clips with the embedded pair: demo-out/
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/demo.sh

# Once for all of the processes that tests start, which may be told not to write bytecode.
COMPILE = @$(BIN)/python -m compileall -qq -j 0 turbovaed_cli tests/support || true

test: install
	$(COMPILE)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

test-all: extras       ## every test: also those that need these converters, and more cases of the same kinds
	$(COMPILE)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --thorough

faults: install        ## kills, flips and other mishaps in full: minutes
	$(BIN)/python -m pytest -m faults --all-faults --timeout 3000 -n 2 --dist loadfile --no-loadscope-reorder tests/faults tests/machine/test_fake_cuda_training.py tests/video/test_video_reading.py tests/test_gpu_first.py

teachers: install      ## every command with a small random instance of every teacher of the registry: a table, some ten minutes
	$(BIN)/python tools/every_teacher.py

two-machines: install  ## docs/guides/scale.md on two network namespaces; Linux and root, two minutes on 2 cores
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/two_machines.sh

bench: install         ## the README's figures of speed and memory on this machine, in some ten minutes
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/decode.py --model ltx --rounds 3
	$(BIN)/python benchmarks/decode.py --model hunyuan --rounds 2
	$(BIN)/python benchmarks/decode.py --model all --size 128 --rounds 1 --teacher
	$(BIN)/python benchmarks/streaming.py --frames 9 33 65 129 --repeats 1 --plot docs/pictures/decode_memory.svg
	$(BIN)/python benchmarks/training_step.py ltx hunyuan --only flops

bench-gpu:             ## forms, students, teachers and steps on a CUDA device, within eight minutes, with the packages at hand or in carry/: gpu-out/gpu.html
	OUT=gpu-out PYTHONPATH=carry:. $(PYTHON) tools/gpu_first.py --device cuda --parts versions decodes streams teachers steps

docs: install          ## the documentation site: site/index.html; fails on a broken link
	$(BIN)/python tools/docs_site.py

docs-check: install    ## every command of README and docs/ on small clips and weights, and the output that they quote: 10 to 20 minutes
	$(BIN)/python tools/docs_check.py

audit: install         ## known vulnerabilities of the pinned packages by pip-audit, and what does not fit together; asks pypi.org
	$(BIN)/python -m pip check
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install -q pip-audit
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt

CLIPS ?= demo-out/val
pictures: install      ## the pictures of README and docs/ from the videos in CLIPS; a Chromium, some ten minutes, and a machine left alone
	$(BIN)/python tools/pictures.py $(CLIPS)
	$(BIN)/python tools/artefacts.py --write

reference: install     ## docs/reference/cli.md and recipes.md, from the code
	$(BIN)/python tools/reference.py --write

comfyui: install       ## the generated parts of comfyui/, the node pack of ComfyUI, from the code
	$(BIN)/python tools/comfyui_pack.py --write

package: install       ## sdist and wheel: build, install into an empty environment, decode a video
	$(BIN)/python tools/check_package.py

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv demo-out two-machines-out build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
