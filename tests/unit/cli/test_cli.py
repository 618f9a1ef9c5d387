"""The command line: data on stdout, narration on stderr, stable exit statuses."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import safetensors.numpy
import torch

from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.cli.main import main
from orchestrator.cli.options import ClientList, Duration, Quorum, ShardCount
from orchestrator.deployment import load, terraform
from orchestrator.errors import NotDeployed
from orchestrator.paths import ROOT
from orchestrator.rounds import queues, wait
from tests.support.commands import error_of, run
from tests.support.rounds import objects, put, put_bytes, queued, submitted_clients, weights, working


@pytest.fixture(autouse=True)
def _no_real_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is deployed, and no test waits long."""
    monkeypatch.setenv("FEDAGG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("FEDAGG_ENV", raising=False)
    monkeypatch.setattr(terraform, "registry_answers", lambda: True)
    monkeypatch.setattr(queues, "_WAIT_S", 1)
    monkeypatch.setattr(wait, "_LOOK_EVERY_S", 0.5)


@pytest.fixture
def deployed(lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch) -> Deployment:
    """The environment `local` is deployed."""

    def load_deployment(environment: str) -> Deployment:
        if environment != "local":
            raise NotDeployed(f"Environment {environment} is not deployed.")
        return lanes_without_functions

    monkeypatch.setattr(load, "load_deployment", load_deployment)
    return lanes_without_functions


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A safetensors file."""
    safetensors.numpy.save_file(weights(1), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def command_of(group: click.Group, name: str) -> click.Command:
    command = group.get_command(click.Context(group), name)
    assert command is not None
    return command


def examples_in(text: str, name: str) -> list[list[str]]:
    """The arguments of the examples of a command in a help text; a backslash continues a line."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line)[1:] for line in lines if line.strip().startswith(name)]


def commands() -> Iterator[tuple[tuple[str, ...], click.Command]]:
    def walk(group: click.Group, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], click.Command]]:
        for name in group.list_commands(click.Context(group)):
            command = command_of(group, name)
            yield (*path, name), command
            if isinstance(command, click.Group):
                yield from walk(command, (*path, name))

    yield (), main
    yield from walk(main, ())


LEAVES = [path for path, command in commands() if not isinstance(command, click.Group)]


# --- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [path for path, _ in commands()], ids=" ".join)
def test_every_command_has_help_that_says_what_it_does(path: tuple[str, ...]) -> None:
    for option in ("--help", "-h"):
        result = run(*path, option)
        assert result.stdout.startswith("Usage: ")
        assert result.stderr == ""


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_commands_help_has_an_example_that_parses(path: tuple[str, ...]) -> None:
    examples = examples_in(run(*path, "--help").stdout, " ".join(("orchestrator", *path)))
    assert examples
    command: Any = main
    for part in path:
        command = command_of(command, part)
    for example in examples:
        context = command.make_context(path[-1], example[len(path) :], resilient_parsing=False)
        assert context.params["output"] in ("text", "json")


def test_the_examples_of_the_first_page_parse_too() -> None:
    examples = examples_in(run("--help").stdout, "orchestrator ")
    assert len(examples) == 6
    for example in examples:
        command: Any = main
        while isinstance(command, click.Group):
            command = command_of(command, example.pop(0))
        command.make_context("x", example)


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_can_answer_in_json(path: tuple[str, ...]) -> None:
    assert "--output [text|json]" in run(*path, "--help").stdout


def test_the_help_lists_the_exit_statuses() -> None:
    text = " ".join(run("--help").stdout.split())
    for words in (
        "0 success",
        "2 bad input",
        "3 not deployed",
        "4 quorum missed",
        "5 the round failed",
        "6 conflict",
        "7 nothing",
    ):
        assert words in text


# --- values at the edge --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5s", 1.5), ("30m", 1800), ("1h30m", 5400), ("2h", 7200), ("0", 0)],
)
def test_durations_are_read_with_their_units(text: str, seconds: float) -> None:
    assert Duration().convert(text, None, None) == seconds


@pytest.mark.parametrize("text", ["", "x", "-5", "5 m", "1d", "m", "1m1h", "nan", "inf", "1e3"])
def test_an_invalid_duration_is_refused_with_examples(text: str) -> None:
    with pytest.raises(
        click.BadParameter, match="is not a valid duration: expected seconds or a form like 90s, 30m or 1h30m"
    ):
        Duration().convert(text, None, None)


def test_a_shard_count_is_a_number_or_auto() -> None:
    assert ShardCount().convert("16", None, None) == 16
    assert ShardCount().convert("auto", None, None) is None
    for text in ("0", "-4", "x", "1.5", ""):
        with pytest.raises(click.BadParameter, match="is not a valid shard count: expected auto or a number from 1"):
            ShardCount().convert(text, None, None)


@pytest.mark.parametrize(
    ("text", "quorum"),
    [("8", (8, None)), ("1", (1, None)), ("0.8", (1, 0.8)), (".5", (1, 0.5)), ("1.0", (1, 1.0)), ("80%", (1, 0.8)),
     ("100%", (1, 1.0)), ("12.5%", (1, 0.125))],
)  # fmt: skip
def test_a_quorum_is_a_count_or_a_share(text: str, quorum: tuple[int, float | None]) -> None:
    assert Quorum().convert(text, None, None) == quorum


@pytest.mark.parametrize("text", ["", "x", "-1", "2.5", "80 %", "%", "1e3", "nan", "8%%"])
def test_an_invalid_quorum_is_refused_with_examples(text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"expected a number of clients, or a share like 0.8 or 80%"):
        Quorum().convert(text, None, None)


def test_expected_clients_come_from_a_file_or_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "clients").write_text("a\n\n# the north\nb  # since May\r\nc-1\n")
    assert ClientList().convert(str(tmp_path / "clients"), None, None) == ("a", "b", "c-1")
    assert ClientList().convert("b, a,c", None, None) == ("b", "a", "c")
    for text in (str(tmp_path / "none"), "a,b/c", "", ",", "a" * 5000):
        with pytest.raises(click.BadParameter, match=r"not a valid client id|names no client"):
            ClientList().convert(text, None, None)
    (tmp_path / "bad").write_bytes(b"\xff\xfe")
    with pytest.raises(click.BadParameter, match="Cannot read"):
        ClientList().convert(str(tmp_path / "bad"), None, None)


# --- a round from the command line ---------------------------------------------------------------------------------


def test_submit_start_round_and_fetch_make_a_round(aws: AwsClients, deployed: Deployment, tmp_path: Path) -> None:
    torch.save({"w": torch.tensor([1.0, 2.0])}, tmp_path / "a.pt")
    safetensors.numpy.save_file({"w": np.array([4.0, 8.0], np.float32)}, tmp_path / "b.safetensors")
    assert "update of" in run("submit", tmp_path / "a.pt", "--round", "r-1", "--client", "a", "--examples", "2").stdout
    again = ["submit", tmp_path / "b.safetensors", "--round", "r-1", "--client", "b", "--examples", "1"]
    assert run(*again).stdout.rstrip().endswith("is in round r-1.")
    assert run(*again).stdout.rstrip().endswith("is in round r-1 already.")
    with working(aws, deployed, 2):
        result = run("start-round", "--model", "digits", "--round", "r-1", "--shards", "2", "--min-clients", "2")
    assert "Round r-1 of model digits: published" in result.stdout
    assert "Pinned 2 updates" in result.stderr
    assert "Pinned" not in result.stdout
    to = tmp_path / "global.safetensors"
    assert "digits of round r-1" in run("fetch", "--model", "digits", "--to", to).stdout
    assert safetensors.numpy.load_file(to)["w"].tolist() == [2.0, 4.0]
    assert "published" in run("status", "--round", "r-1").stdout
    assert "r-1" in run("rounds", "--model", "digits").stdout
    assert run("report", "--round", "r-1").stdout.startswith("Round r-1 of model digits: published")
    assert "has no report: it has not ended" in run("report", "--round", "r-9", ok=False).stderr
    assert run("rounds", "--model", "vgg").stdout == "No rounds.\n"


def test_with_output_json_stdout_is_exactly_one_json_document(
    aws: AwsClients, deployed: Deployment, model: Path, tmp_path: Path
) -> None:
    def document(*arguments: str | Path) -> Any:
        return json.loads(run(*arguments, "--output", "json").stdout)

    found = document("submit", model, "--round", "r-1", "--client", "a", "--examples", "3", "--wire", "bfloat16")
    assert found["key"] == "rounds/r-1/updates/a.safetensors"
    assert (found["created"], found["num_examples"]) == (True, 3)
    assert document("status", "--round", "r-1")["state"] == "not opened"
    with working(aws, deployed, 2):
        report = document("start-round", "--model", "digits", "--round", "r-1", "--shards", "2")
    assert (report["status"], report["shards"]) == ("published", 2)
    assert document("rounds")[0]["round"] == "r-1"
    assert document("status", "--round", "r-1")["state"] == "published"
    fetched = document("fetch", "--model", "digits", "--to", tmp_path / "g")
    assert fetched["nbytes"] == (tmp_path / "g").stat().st_size
    assert document("worker", "--shards", "1", "--idle-exit", "1s") == {"jobs": 0}
    assert document("emulator", "status") is None
    assert document("emulator", "stop") == {"stopped": False}
    assert isinstance(document("plan", "--model-bytes", "50000000", "--clients", "20"), list)


def test_the_worker_does_jobs_and_narrates_on_stderr(aws: AwsClients, deployed: Deployment, model: Path) -> None:
    from lambdas.protocol.messages import ShardJob

    aws.sqs.send_message(QueueUrl=deployed.lane(1).queue_url, MessageBody=ShardJob("r-gone", "ab" * 32, 0).to_json())
    result = run("worker", "--shards", "1", "--idle-exit", "1")
    assert result.stdout == "Did 1 jobs.\n"
    assert "Polling 1 lanes of local" in result.stderr
    assert "Did a job." in result.stderr


# --- exit statuses -------------------------------------------------------------------------------------------------


def submit_arguments(file: Path, **changes: str) -> list[str | Path]:
    options = {"round": "r-1", "client": "a", "examples": "3", **changes}
    return ["submit", file, *(f"--{name}={value}" for name, value in options.items()), "--output", "json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"examples": "0"}, "an example count of 0 is not a valid weight; expected an integer from 1 to 1000000000"),
        ({"examples": "-5"}, "an example count of -5 is not a valid weight"),
        ({"examples": "10000000000"}, "an example count of 10000000000 is not a valid weight"),
        ({"client": "a/b"}, "'a/b' is not a valid client id: expected 1 to 128 letters"),
        ({"client": ".."}, "is not a valid client id"),
        ({"client": ""}, "is not a valid client id"),
        ({"client": "größe"}, "is not a valid client id"),
        ({"client": "a" * 300}, "is not a valid client id"),
        ({"round": "a b"}, "is not a valid round"),
        ({"env": "production"}, "No environment 'production'; there are: dev, local, prod, staging"),
    ],
)
def test_bad_arguments_exit_with_2_and_store_nothing(
    aws: AwsClients, deployed: Deployment, model: Path, changes: dict[str, str], message: str
) -> None:
    result = run(*submit_arguments(model, **changes), ok=False)
    assert result.exit_code == 2
    assert message in error_of(result)["message"]
    assert objects(aws, deployed) == []


@pytest.mark.parametrize("content", [b"", b"epoch,loss\n1,0.5\n", b"\x80\x04\x95", b"PK\x03\x04" + b"x" * 20])
def test_a_file_that_is_no_model_exits_with_2_and_its_name(
    deployed: Deployment, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "notes.csv").write_bytes(content)
    result = run(*submit_arguments(tmp_path / "notes.csv"), ok=False)
    assert result.exit_code == 2
    assert "notes.csv" in error_of(result)["message"]
    missing = run(*submit_arguments(tmp_path / "missing"), ok=False)
    assert missing.exit_code == 2
    assert "Cannot read" in error_of(missing)["message"]


def test_a_wire_dtype_that_cannot_hold_the_values_exits_with_2(deployed: Deployment, tmp_path: Path) -> None:
    safetensors.numpy.save_file({"w": np.array([1e6], np.float32)}, tmp_path / "m")
    result = run(*submit_arguments(tmp_path / "m", wire="float16"), ok=False)
    assert result.exit_code == 2
    assert "beyond the range of F16" in error_of(result)["message"]


def test_weights_of_another_model_exit_with_2(
    aws: AwsClients, deployed: Deployment, model: Path, tmp_path: Path
) -> None:
    put(aws, deployed, "a", weights(1), round_id="r-0")
    with working(aws, deployed, 1):
        run("start-round", "--model", "digits", "--round", "r-0", "--shards", "1")
    run("start-round", "--model", "digits", "--round", "r-1", ok=False)  # opens it
    safetensors.numpy.save_file(weights(1, (2, 2)), tmp_path / "other")
    result = run(*submit_arguments(tmp_path / "other"), ok=False)
    assert "tensor 'layer.weight' has shape" in error_of(result)["message"]
    assert result.exit_code == 2


def test_usage_errors_exit_with_2_and_say_nothing_on_stdout_but_json_where_asked(
    deployed: Deployment, model: Path
) -> None:
    for arguments in (
        ["submit", model],
        ["submit", model, "--round", "r-1", "--client", "a", "--examples", "many"],
        ["start-round", "--model", "digits", "--round", "r-1", "--shards", "0"],
        ["start-round", "--model", "digits", "--round", "r-1", "--deadline", "soon"],
        ["no-such-command"],
    ):
        result = run(*arguments, ok=False)
        assert result.exit_code == 2
        assert result.stdout == ""
        assert "Error: " in result.stderr
        for wanted in (["--output", "json"], ["--output=json"]):
            result = run(*arguments, *wanted, ok=False)
            assert result.exit_code == 2
            error = json.loads(result.stdout)["error"]
            assert (error["kind"], error["exit_status"]) == ("UsageError", 2)
            assert error["message"] in result.stderr
        assert json.loads(run("emulator", "sta", "--output", "json", ok=False).stdout)["error"]["exit_status"] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["status", "--round", "r-1"],
        ["rounds"],
        ["fetch", "--model", "digits"],
        ["start-round", "--model", "digits", "--round", "r-1"],
        ["worker", "--idle-exit", "1"],
    ],
)
def test_an_environment_that_is_not_deployed_exits_with_3_and_says_how_to(arguments: list[str]) -> None:
    result = run(*arguments, "--output", "json", ok=False)
    assert result.exit_code == 3
    error = error_of(result)
    assert error["kind"] == "NotDeployed"
    assert "Environment local is not deployed. Run `orchestrator deploy --env local` first" in error["message"]


def test_a_shard_count_without_a_lane_exits_with_3_before_anything_is_queued(
    aws: AwsClients, deployed: Deployment
) -> None:
    put(aws, deployed, "a", weights(1))
    result = run("start-round", "--model", "digits", "--round", "r-1", "--shards", "6", "--output", "json", ok=False)
    assert result.exit_code == 3
    assert "No lane for 6 shards; deployed: 1, 2, 4, 8. Add 6 to shard_counts" in error_of(result)["message"]
    assert queued(aws, deployed) == 0
    assert run("worker", "--shards", "6", ok=False).exit_code == 3


def test_a_bucket_that_is_gone_exits_with_3(deployed: Deployment, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "load_deployment", lambda env: replace(deployed, bucket="gone-bucket"))
    result = run("rounds", "--output", "json", ok=False)
    assert result.exit_code == 3
    assert "does not exist. Deploy the environment" in error_of(result)["message"]


def test_an_aws_that_cannot_be_reached_exits_with_1_and_a_sentence(
    deployed: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "load_deployment", lambda env: replace(deployed, endpoint_url="http://127.0.0.1:9"))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    result = run("rounds", "--output", "json", ok=False)
    assert result.exit_code == 1
    assert error_of(result)["message"].startswith("AWS cannot be reached: ")


def test_a_missed_quorum_exits_with_4(aws: AwsClients, deployed: Deployment) -> None:
    put(aws, deployed, "a", weights(1))
    arguments = ["start-round", "--model", "digits", "--round", "r-1", "--min-clients", "2", "--output", "json"]
    result = run(*arguments, ok=False)
    assert result.exit_code == 4
    assert "has 1 of the 2 updates of its quorum" in error_of(result)["message"]
    assert queued(aws, deployed) == 0


def test_a_bad_update_exits_with_5_and_names_the_client(aws: AwsClients, deployed: Deployment) -> None:
    put(aws, deployed, "a", weights(1))
    put_bytes(aws, deployed, "hospital-7", b"epoch,loss\n")
    result = run("start-round", "--model", "digits", "--round", "r-1", "--output", "json", ok=False)
    assert result.exit_code == 5
    error = error_of(result)
    assert error["kind"] == "RoundFailed"
    assert "client hospital-7: not a safetensors file" in error["message"]
    assert queued(aws, deployed) == 0


def test_conflicts_exit_with_6(aws: AwsClients, deployed: Deployment, model: Path) -> None:
    run(*submit_arguments(model))
    other = run(*submit_arguments(model, examples="4"), ok=False)
    assert other.exit_code == 6
    assert "Client a has already submitted another update to round r-1" in error_of(other)["message"]
    with working(aws, deployed, 1):
        run("start-round", "--model", "digits", "--round", "r-1", "--shards", "1")
    again = run("start-round", "--model", "digits", "--round", "r-1", "--output", "json", ok=False)
    assert again.exit_code == 6
    assert "already published" in error_of(again)["message"]
    late = run(*submit_arguments(model, client="late"), ok=False)
    assert late.exit_code == 6
    assert "Round r-1 is closed" in error_of(late)["message"]
    assert submitted_clients(aws, deployed) == ["a"]


def test_nothing_feasible_exits_with_7() -> None:
    result = run(
        "plan", "--model-bytes", "500000000", "--clients", "20", "--deadline", "0.001s", "--output", "json", ok=False
    )
    assert result.exit_code == 7
    assert error_of(result)["kind"] == "PlanningError"
    plans = json.loads(result.stdout)["plans"]
    assert plans
    assert all(not plan["feasible"] and "0.001 s" in plan["reason"] for plan in plans)


def test_the_plan_is_of_the_topologies_and_cpu_architectures_that_are_asked_for() -> None:
    asked = ("plan", "--model-bytes", "50000000", "--clients", "9", "--all")
    table = run(*asked).stdout
    assert all(word in table for word in ("arm64", "x86_64", "grads-sharding", "lambda-fl", "lifl"))
    table = run(*asked, "--cpu-architecture", "arm64", "--topology", "lifl", "--topology", "lambda-fl").stdout
    assert all(word in table for word in ("arm64", "lambda-fl", "lifl"))
    assert not any(word in table for word in ("x86_64", "grads-sharding"))


def test_a_round_or_model_that_is_not_there_exits_with_2(deployed: Deployment, tmp_path: Path) -> None:
    assert "There is no round r-9" in error_of(run("status", "--round", "r-9", "--output", "json", ok=False))["message"]
    result = run("fetch", "--model", "digits", "--to", tmp_path / "g", "--output", "json", ok=False)
    assert result.exit_code == 2
    assert "has no global model yet" in error_of(result)["message"]


def test_without_output_json_an_error_leaves_stdout_empty(deployed: Deployment) -> None:
    result = run("status", "--round", "r-9", ok=False)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith("Error: There is no round r-9.")


# --- deploying -----------------------------------------------------------------------------------------------------


@pytest.fixture
def applied(
    monkeypatch: pytest.MonkeyPatch, lanes_without_functions: Deployment, tmp_path: Path
) -> list[tuple[Any, ...]]:
    """What Terraform was asked to do."""
    from orchestrator.deployment import function_zip

    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(function_zip, "build", lambda target: ROOT / f"build/{target.name}.zip")
    monkeypatch.setattr(terraform, "apply", lambda env, values, **options: asked.append((env, values, options)))
    monkeypatch.setattr(terraform, "destroy", lambda env, values, **options: asked.append((env, values, options)))
    monkeypatch.setattr(terraform, "deployment_file", lambda env: tmp_path / f"{env}.json")
    monkeypatch.setattr(load, "load_deployment", lambda env: lanes_without_functions)
    return asked


def test_deploying_dev_without_a_terminal_needs_yes(applied: list[Any]) -> None:
    for command in ("deploy", "destroy"):
        result = run(command, "--env", "dev", ok=False)
        assert result.exit_code == 2
        assert f"{'apply' if command == 'deploy' else 'destroy'} dev without a terminal. Add --yes" in result.stderr
    assert applied == []


def test_deploying_passes_package_and_variables_to_terraform(applied: list[Any]) -> None:
    run("deploy", "--env", "dev", "--yes", "--var", "shard_counts=[1,4]", "--var", "name_prefix=x", "--output", "json")
    [(env, values, _)] = applied
    assert env == "dev"
    assert values == {
        "package_path": "../../build/aws.zip", "runtime": "python3.13", "cpu_architecture": "arm64",
        "shard_counts": [1, 4], "name_prefix": "x",
    }  # fmt: skip


def test_deploying_locally_needs_an_emulator(
    applied: list[Any], monkeypatch: pytest.MonkeyPatch, endpoint_url: str
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
    result = run("deploy", ok=False)
    assert result.exit_code == 2
    assert "No emulator is running. Start one with `orchestrator emulator start`" in result.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    result = run("deploy", ok=False)
    assert result.exit_code == 2
    assert "AWS_ENDPOINT_URL=http://127.0.0.1:9 does not answer" in result.stderr
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint_url)
    run("deploy")
    assert applied[0][1]["aws_endpoint_url"] == endpoint_url
    assert applied[0][1]["package_path"] == "../../build/local.zip"


def test_a_variable_without_a_value_exits_with_2(applied: list[Any]) -> None:
    result = run("deploy", "--env", "dev", "--yes", "--var", "clients", ok=False)
    assert result.exit_code == 2
    assert "--var clients: expected NAME=VALUE" in result.stderr


def test_a_plan_changes_nothing(applied: list[Any]) -> None:
    assert run("deploy", "--env", "prod", "--plan").stdout == "Nothing was changed in prod.\n"
    assert applied[0][2] == {"plan_only": True}
    assert len(applied) == 1


# --- the process ---------------------------------------------------------------------------------------------------


def test_the_installed_command_runs() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", "fetch", "--model", "a/b", "--output", "json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 2
    assert json.loads(result.stdout)["error"]["kind"] == "BadInput"
    assert result.stderr.startswith("Error: 'a/b' is not a valid model")
    version = subprocess.run([sys.executable, "-m", "orchestrator.cli", "--version"], capture_output=True, text=True)
    assert "version" in version.stdout
