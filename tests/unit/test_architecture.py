"""docs/architecture.md names every module, and draws the import rules as import-linter checks them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/architecture.md").read_text()
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/README.md"), *ROOT.glob("infra/*/*.md")]
ENTRY = re.compile(r"^\| `((?:lambdas|orchestrator)/\S+\.py)` \| (\S.*) \|$", re.MULTILINE)


def _modules() -> set[str]:
    files = (path for room in ("lambdas", "orchestrator") for path in (ROOT / room).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix() for path in files if path.name != "__init__.py"}


def test_the_module_map_names_every_module_and_no_other() -> None:
    named = [name for name, _ in ENTRY.findall(PAGE)]
    assert sorted(_modules() - set(named)) == [], "modules that docs/architecture.md does not name: add a line for each"
    assert sorted(set(named) - _modules()) == [], "modules that docs/architecture.md names and that do not exist"
    assert len(named) == len(set(named)), "docs/architecture.md names a module twice"


def test_each_module_stands_under_its_room() -> None:
    for section in PAGE.split("\n### ")[1:]:
        room = section.split(":")[0].split("\n")[0]
        for name, _ in ENTRY.findall(section.split("\n## ")[0]):
            assert name.startswith(f"{room}/"), f"{name} stands under {room}"


def test_the_picture_has_the_layers_that_import_linter_checks() -> None:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    expected = ""
    for contract in contracts:
        if contract["type"] == "layers" and "containers" in contract:
            expected += contract["containers"][0] + "\n" + "".join(f"  {layer}\n" for layer in contract["layers"])
    assert f"```\n{expected}```" in PAGE, f"the picture in docs/architecture.md should be:\n{expected}"


def test_every_link_leads_to_a_page_and_a_heading_that_exist() -> None:
    broken = []
    for page in PAGES:
        for target, anchor in re.findall(r"\]\(([^)#:\s]*)(?:#([^)\s]+))?\)", page.read_text()):
            file = page.parent / target if target else page
            if not file.exists() or (anchor and anchor not in _anchors(file)):
                broken.append(f"{page.relative_to(ROOT)} -> {target}#{anchor}")
    assert broken == []


def test_every_path_that_a_page_names_exists() -> None:
    top = "lambdas|orchestrator|infra|environments|benchmarks|tests|docs"
    missing = []
    for page in PAGES:
        if page.name == "CHANGELOG.md":
            continue  # it also names what was there once
        for path in re.findall(rf"`((?:{top})/[\w./-]+)`", page.read_text()):
            if not (ROOT / path).exists() and not path.endswith(("local.auto.tfvars", "backend.hcl")):
                missing.append(f"{page.relative_to(ROOT)}: {path}")
    # The traces leave `orchestrator/` out.
    for path in re.findall(r"`([a-z]+/\w+\.py)`", PAGE):
        if not ((ROOT / path).exists() or (ROOT / "orchestrator" / path).exists()):
            missing.append(f"docs/architecture.md: {path}")
    assert missing == []


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
