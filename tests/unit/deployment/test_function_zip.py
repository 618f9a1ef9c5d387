"""The function zip: what is in it, and that the same inputs give the same bytes."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from orchestrator.deployment import function_zip
from orchestrator.deployment.function_zip import MAX_ZIP_BYTES, Target, build, target_for
from orchestrator.errors import OrchestratorError
from orchestrator.paths import ROOT


@dataclass(frozen=True)
class Elsewhere(Target):
    """A target that is built in a directory of the test's own."""

    directory: str = ""

    @property
    def path(self) -> Path:
        return Path(self.directory) / f"lambda-{self.name}.zip"


def elsewhere(environment: str, directory: Path) -> Elsewhere:
    target = target_for(environment)
    directory.mkdir(exist_ok=True)
    return Elsewhere(target.name, target.python, target.cpu_architecture, target.platforms, str(directory))


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of each target, from the package index, once."""
    found = {}
    for environment in ("local", "dev"):
        found[target_for(environment).name] = tmp_path_factory.mktemp("wheels")
        function_zip._download(target_for(environment), found[target_for(environment).name])
    return found


@pytest.fixture(scope="module")
def compiler() -> Iterator[Path]:
    """The compiler, from the package index, once. Not in pytest's directory, which is kept: it has 400 MB."""
    with tempfile.TemporaryDirectory(prefix="compiler-") as directory:
        yield function_zip._fetch_compiler(Path(directory))


@pytest.fixture(scope="module")
def at_hand(wheels: dict[str, Path], compiler: Path) -> Callable[[pytest.MonkeyPatch], None]:
    """Makes the package module take wheels and compiler from here instead of from the package index."""

    def copy(target: Target, directory: Path) -> None:
        for wheel in wheels[target.name].iterdir():
            shutil.copy(wheel, directory)

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(function_zip, "_download", copy)
        monkeypatch.setattr(function_zip, "_fetch_compiler", lambda directory: compiler)

    return patch


@pytest.fixture(autouse=True)
def _at_hand(at_hand: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    at_hand(monkeypatch)


@pytest.fixture(scope="module")
def built(at_hand: Callable[[pytest.MonkeyPatch], None], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both zips."""
    directory = tmp_path_factory.mktemp("build")
    with pytest.MonkeyPatch.context() as patch:
        at_hand(patch)
        return {environment: build(elsewhere(environment, directory)) for environment in ("local", "dev")}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_targets_are_lambdas_python_on_arm_and_this_machines_own() -> None:
    assert (target_for("dev").runtime, target_for("dev").cpu_architecture) == ("python3.13", "arm64")
    assert target_for("dev") == target_for("staging") == target_for("prod")
    local = target_for("local")
    assert local.python == sys.version_info[:2]
    assert local.cpu_architecture in ("arm64", "x86_64")
    assert local.platforms == ()
    assert local.path == ROOT / "build" / "lambda-local.zip"


def test_a_newer_python_of_this_machine_is_named_by_the_newest_runtime_that_terraform_takes() -> None:
    assert Target("local", (3, 12), "x86_64").runtime == "python3.12"
    assert Target("local", (3, 14), "x86_64").runtime == "python3.13"
    validation = (ROOT / "infra/aggregator/variables.tf").read_text()
    assert 'error_message = "runtime must be python3.11, python3.12 or python3.13."' in validation


def test_the_zips_path_is_the_same_in_every_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(function_zip, "build", lambda target: target.path)
    assert function_zip.variables(target_for("dev"))["package_path"] == "../../build/lambda-aws.zip"


def test_localstack_runs_functions_on_lambdas_python_on_this_machines_own_processor() -> None:
    target = target_for("local", "localstack")
    assert target.runtime == target_for("dev").runtime
    assert target.cpu_architecture == target_for("local").cpu_architecture
    assert all(tag.startswith("manylinux") for tag in target.platforms)
    assert target.path not in {target_for("dev").path, target_for("local").path}


@pytest.mark.parametrize("environment", ["local", "dev"])
def test_the_zip_holds_every_function_module_and_numpy_and_nothing_that_is_not_needed(
    built: dict[str, Path], environment: str
) -> None:
    with zipfile.ZipFile(built[environment]) as archive:
        names = archive.namelist()
        for source in (ROOT / "lambdas").glob("*.py"):
            assert archive.read(f"lambdas/{source.name}") == source.read_bytes()
    assert "numpy/__init__.py" in names
    assert {name.split("/")[0] for name in names if name.endswith(".py")} == {"lambdas", "numpy"}
    assert {name.split("/")[0] for name in names} <= {"lambdas", "numpy", "numpy.libs"} | {
        name.split("/")[0] for name in names if ".dist-info/" in name
    }
    assert not [name for name in names if "tests" in name.split("/") or "__pycache__" in name or name.endswith(".pyc")]
    assert not [name for name in names if "torch" in name or "boto" in name]
    assert names == sorted(names)


@pytest.mark.parametrize("environment", ["local", "dev"])
def test_the_zip_is_within_lambdas_limit_packed_and_unpacked(built: dict[str, Path], environment: str) -> None:
    assert built[environment].stat().st_size < MAX_ZIP_BYTES
    with zipfile.ZipFile(built[environment]) as archive:
        assert sum(entry.file_size for entry in archive.infolist()) < 250 * 1000**2


def test_the_libraries_for_lambda_are_aarch64_elf_for_its_python(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["dev"]) as archive:
        libraries = {n: archive.read(n)[:20] for n in archive.namelist() if ".so" in Path(n).suffixes}
        executable = {e.filename: e.external_attr >> 16 for e in archive.infolist()}
    assert len(libraries) > 10
    for name, start in libraries.items():
        assert start[:4] == b"\x7fELF", name
        assert struct.unpack_from("<H", start, 18) == (183,), f"{name}: EM_AARCH64 is 183"
        assert executable[name] == 0o755
        if ".cpython-" in name:
            assert ".cpython-313-aarch64-linux-gnu.so" in name
    assert executable["lambdas/protocol/manifest.py"] == 0o644


ELF_MACHINES = {"arm64": 183, "x86_64": 62}  # EM_AARCH64, EM_X86_64


@pytest.mark.parametrize("environment", ["local", "dev"])
def test_the_zip_has_the_compiled_loop_for_the_functions_processor(built: dict[str, Path], environment: str) -> None:
    with zipfile.ZipFile(built[environment]) as archive:
        machine = struct.unpack_from("<H", archive.read("lambdas/averaging/libfold.so"), 18)
    assert machine == (ELF_MACHINES[target_for(environment).cpu_architecture],)


def test_an_emulator_on_another_system_than_linux_gets_no_library_that_it_could_not_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(function_zip, "_download", lambda target, directory: None)
    monkeypatch.setattr(sys, "platform", "darwin")
    for environment, there in (("local", False), ("dev", True)):
        with zipfile.ZipFile(build(elsewhere(environment, tmp_path))) as archive:
            assert ("lambdas/averaging/libfold.so" in archive.namelist()) == there, environment


@pytest.mark.parametrize("cpu_architecture", sorted(ELF_MACHINES))
def test_the_same_source_is_compiled_to_the_same_bytes_whatever_the_users_environment(
    cpu_architecture: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target("any", (3, 13), cpu_architecture)
    (tmp_path / "1").mkdir()
    (tmp_path / "another").mkdir()
    first = function_zip.compile_fold(target, tmp_path / "1").read_bytes()
    monkeypatch.setenv("CCC_OVERRIDE_OPTIONS", "+-DNOT_HERE")
    assert function_zip.compile_fold(target, tmp_path / "another").read_bytes() == first


def test_the_library_for_lambda_multiplies_and_adds_apart(built: dict[str, Path]) -> None:
    """Arm's processors have a fused multiply-add, which rounds once where numpy rounds twice."""
    with zipfile.ZipFile(built["dev"]) as archive:
        code = archive.read("lambdas/averaging/libfold.so")
    words = struct.unpack(f"<{len(code) // 4}I", code[: len(code) // 4 * 4])
    apart, fused = ((0xBFA0FC00, 0x2E20DC00), (0xBFA0FC00, 0x0E20D400)), (
        (0xBFA0FC00, 0x0E20CC00), (0xBF80F400, 0x0F801000), (0xFF000000, 0x1F000000),
    )  # fmt: skip
    assert all(any(word & mask == bits for word in words) for mask, bits in apart), "FMUL and FADD of vectors"
    assert not any(word & mask == bits for word in words for mask, bits in fused), "FMLA of vectors, by element, FMADD"


def test_a_source_that_does_not_compile_is_an_error_in_the_compilers_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "fold.c"
    source.write_text("double fold_float32(void) { return missing; }")
    monkeypatch.setattr(function_zip, "_FOLD_SOURCE", source)
    with pytest.raises(OrchestratorError, match=r"fold\.c could not be compiled(.|\n)*undeclared identifier 'missing'"):
        function_zip.compile_fold(target_for("dev"), tmp_path)


def test_the_local_zip_runs_where_nothing_else_is_installed(built: dict[str, Path], tmp_path: Path) -> None:
    with zipfile.ZipFile(built["local"]) as archive:
        archive.extractall(tmp_path)
    program = f"""
import sys
sys.path = [p for p in sys.path if "site-packages" not in p] + [{str(tmp_path)!r}]
import numpy, lambdas.averaging.mean, lambdas.protocol.safetensors
assert (lambdas.averaging.fold.load() is None) == (sys.platform != "linux")
assert numpy.__file__.startswith({str(tmp_path)!r}), numpy.__file__
assert lambdas.__file__.startswith({str(tmp_path)!r}), lambdas.__file__
print(bytes(lambdas.averaging.mean.from_float64(numpy.array([1.0]), "BF16")).hex())
"""
    result = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert result.stdout == "803f\n", result.stderr


def test_the_same_inputs_give_the_same_bytes(built: dict[str, Path], tmp_path: Path) -> None:
    again = build(elsewhere("dev", tmp_path))
    assert again != built["dev"]
    assert sha256(again) == sha256(built["dev"])


def test_a_zip_that_is_there_is_built_anew_only_where_an_input_or_the_zip_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    downloads: list[str] = []

    def download(target: Target, directory: Path) -> None:
        downloads.append(target.name)

    monkeypatch.setattr(function_zip, "_download", download)
    target = elsewhere("dev", tmp_path / "out")
    first = sha256(build(target))
    assert sha256(build(target)) == first
    assert len(downloads) == 1
    target.path.write_bytes(b"damaged")
    assert sha256(build(target)) == first
    assert len(downloads) == 2
    requirements = tmp_path / "requirements.txt"
    requirements.write_text("numpy==1\n")
    monkeypatch.setattr(function_zip, "_REQUIREMENTS", requirements)
    build(target)
    assert len(downloads) == 3
    assert not target.path.with_suffix(".partial").exists()
    assert json.loads(target.path.with_suffix(".json").read_text())["sha256"] == first
    source = tmp_path / "fold.c"
    source.write_text("changed")
    monkeypatch.setattr(function_zip, "_FOLD_SOURCE", source)
    compiled = tmp_path / "libfold.so"
    compiled.write_bytes(b"compiled")
    monkeypatch.setattr(function_zip, "compile_fold", lambda target, directory: compiled)
    build(target)
    assert len(downloads) == 4
    with zipfile.ZipFile(target.path) as archive:
        assert archive.read("lambdas/averaging/libfold.so") == b"compiled"
    build_requirements = tmp_path / "requirements-build.txt"
    build_requirements.write_text("ziglang==1\n")
    monkeypatch.setattr(function_zip, "_BUILD_REQUIREMENTS", build_requirements)
    build(target)
    assert len(downloads) == 5


def test_a_zip_above_lambdas_limit_is_refused_and_the_old_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = elsewhere("dev", tmp_path)
    target.path.write_bytes(b"old")
    monkeypatch.setattr(function_zip, "MAX_ZIP_BYTES", 1000)
    monkeypatch.setattr(function_zip, "_download", lambda target, directory: None)
    with pytest.raises(OrchestratorError, match="bytes, Lambda takes 1000"):
        build(target)
    assert target.path.read_bytes() == b"old"


@pytest.mark.parametrize(
    ("requirements", "what"),
    [("_REQUIREMENTS", "the function's wheels"), ("_BUILD_REQUIREMENTS", r"the compiler of lambdas/averaging/fold\.c")],
)
def test_what_pip_cannot_get_is_an_error_in_its_own_words(
    requirements: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    file = tmp_path / "requirements.txt"
    file.write_text("./no-such-directory-here\n")
    monkeypatch.setattr(function_zip, requirements, file)
    with pytest.raises(OrchestratorError, match=f"pip could not get {what}") as caught:
        build(elsewhere("dev", tmp_path))
    assert "no-such-directory-here" in str(caught.value)
