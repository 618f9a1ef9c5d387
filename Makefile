# `make demo` and `make test` are the two main commands; the other targets are their parts, and some tools.
# EMULATOR=localstack runs LocalStack instead of MiniStack. AWS_ENDPOINT_URL names an endpoint that is already running.
PYTHON ?= python3
ENV ?= local
FUZZ_CASES ?= 1000
VENV := .venv
BIN := $(VENV)/bin
# The security tools have their own virtual environment, because checkov pins older releases than the project needs.
SECURITY := .venv-security
SECURITY_TOOLS := checkov==3.3.30 bandit==1.9.4 pip-audit==2.10.1
# A release with known vulnerabilities. If pip-audit does not report them, it cannot reach its data, and no audit counts.
KNOWN_BAD := jinja2==2.10

.PHONY: help demo test lint unit-test fault-test fuzz infra-test e2e-test test-localstack test-aws \
        security security-test build deploy destroy \
        up down docs clean

help: ## List the targets
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

$(VENV)/installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing the project and what it needs into $(VENV) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: $(VENV)/installed ## Train a model over federated rounds, on an AWS emulator, from nothing
	@$(BIN)/python -m orchestrator.demo

test: lint infra-test unit-test fault-test security-test e2e-test ## Run every check and test

lint: $(VENV)/installed ## ruff, mypy --strict and import-linter
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

unit-test: $(VENV)/installed ## Unit and property tests, and a few hundred cases of hostile input
	$(BIN)/pytest tests/unit tests/fuzz

fuzz: $(VENV)/installed ## Hostile input: FUZZ_CASES per target, more than 30,000 in total
	FUZZ_CASES=$(FUZZ_CASES) $(BIN)/pytest tests/fuzz

fault-test: $(VENV)/installed ## Rounds while processes are killed, connections cut, and messages delayed or repeated
	$(BIN)/pytest tests/faults

infra-test: $(VENV)/installed ## terraform fmt, validate and test; the sizing rule; generated tables
	$(BIN)/pytest tests/infra

e2e-test: $(VENV)/installed ## Rounds end to end, through a real terraform apply
	$(BIN)/pytest tests/emulator

test-localstack: $(VENV)/installed ## The same on LocalStack 4.14.0 (in Docker, or from PyPI without it)
	EMULATOR=localstack $(BIN)/pytest tests/emulator

test-aws: $(VENV)/installed ## The same on an AWS account: make test-aws ENV=dev CONFIRM_ACCOUNT=<account id>
	@$(BIN)/python -m tests.aws_account --env $(ENV)

security-test: $(VENV)/installed ## A round under enforced IAM, with the roles that Terraform renders for prod
	$(BIN)/pytest tests/security

$(SECURITY)/installed: Makefile
	@test -x $(SECURITY)/bin/python || $(PYTHON) -m venv $(SECURITY)
	@$(SECURITY)/bin/python -m pip install --quiet --disable-pip-version-check $(SECURITY_TOOLS)
	@touch $@

security: $(VENV)/installed $(SECURITY)/installed ## checkov, bandit and pip-audit
	@echo "checkov: infra, environments"
	@$(SECURITY)/bin/checkov --directory infra --directory environments --framework terraform --compact --quiet \
	  --skip-download --skip-path tests
	@echo "bandit: lambdas, orchestrator"
	@$(SECURITY)/bin/bandit --quiet --recursive --configfile pyproject.toml lambdas orchestrator
	@if echo '$(KNOWN_BAD)' | $(SECURITY)/bin/pip-audit --progress-spinner off --disable-pip --no-deps --format json \
	    --requirement /dev/stdin 2>/dev/null | grep -q '"vulns": *\[{'; then \
	  echo "pip-audit: what is installed in $(VENV)"; \
	  $(SECURITY)/bin/pip-audit --progress-spinner off --skip-editable --path $(VENV)/lib/python*/site-packages; \
	else \
	  echo "pip-audit: SKIPPED. Its data cannot be reached from here (it reports nothing for $(KNOWN_BAD)), so no" \
	    "dependency was checked."; \
	fi

build: $(VENV)/installed ## Build the function zip for ENV
	@$(BIN)/orchestrator build --env $(ENV)

deploy: $(VENV)/installed ## terraform apply ENV (the same as `orchestrator deploy --env ENV`)
	@$(BIN)/orchestrator deploy --env $(ENV)

destroy: $(VENV)/installed ## terraform destroy ENV
	@$(BIN)/orchestrator destroy --env $(ENV)

up: $(VENV)/installed ## Start the emulator and deploy to it
	@$(BIN)/orchestrator emulator start
	@$(BIN)/orchestrator deploy --env local

down: $(VENV)/installed ## Stop the emulator
	@$(BIN)/orchestrator emulator stop

clean: ## Remove everything that was built
	rm -rf build $(VENV) $(SECURITY) .venv-localstack .emulator demo-output .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
