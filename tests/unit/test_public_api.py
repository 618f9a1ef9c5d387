"""`from orchestrator import ...`: what is public, and that importing the package loads nothing else."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator


@pytest.mark.parametrize("name", orchestrator.__all__)
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(orchestrator, name)
    assert inspect.getdoc(value)
    assert value is getattr(importlib.import_module(value.__module__), name)


def test_type_checkers_see_the_names_that_python_sees() -> None:
    """The imports for type checkers and the table of modules name the same; `as` marks each as re-exported."""
    tree = ast.parse(Path(orchestrator.__file__).read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        (node.module, alias.name, alias.asname)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {(module, name, name) for name, module in orchestrator._MODULE_OF.items()}
    assert set(orchestrator.__all__) <= set(dir(orchestrator))


def test_importing_the_package_imports_no_library_and_no_module() -> None:
    code = (
        "import sys, orchestrator; orchestrator.BadInput; "
        "print([m for m in sys.modules if m in ('boto3', 'botocore', 'numpy', 'torch')], orchestrator.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[] orchestrator\n"


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'orchestrator' has no attribute 'Server'"):
        orchestrator.Server  # noqa: B018


def test_the_packages_are_typed() -> None:
    root = Path(orchestrator.__file__).parent
    for package in (root, root.parent / "lambdas"):
        assert (package / "py.typed").exists()
