"""From a state_dict or a file to one update object, written once."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from lambdas.protocol.errors import InvalidName, TensorTableMismatch
from lambdas.protocol.keys import global_key, latest_key, round_key, update_key
from lambdas.protocol.latest_model import LatestModel
from lambdas.protocol.safetensors import header_length, parse_header, parse_update_header
from orchestrator.aws.clients import AwsClients
from orchestrator.aws.deployment import Deployment
from orchestrator.aws.models import latest_table, read_header
from orchestrator.client import submit as submitting
from orchestrator.client.sources import Tensors, from_file, from_state_dict
from orchestrator.client.submit import submit
from orchestrator.client.update_file import write_update
from orchestrator.errors import BadInput, OrchestratorError, RoundConflict
from orchestrator.rounds.manifest import freeze_round
from orchestrator.rounds.pin import list_updates, pin_updates
from orchestrator.rounds.request import RoundRecord, RoundRequest
from tests.support.rounds import file_bytes, objects, put, submitted_clients, update_bytes, weights


def written(tensors: Tensors, examples: int = 1, wire: str | None = None) -> bytes:
    out = io.BytesIO()
    update = write_update(tensors, examples, out, wire=wire)
    assert out.getvalue().startswith(update.header)
    data = out.getvalue()[len(update.header) :]
    assert update.nbytes == len(update.header) + len(data)
    header = parse_update_header(update.header[8:], update.nbytes)
    assert header.data_sha256 == update.data_sha256 == hashlib.sha256(data).hexdigest()
    assert header.sha256 == hashlib.sha256(update.header).hexdigest()
    return out.getvalue()


# --- stored bytes --------------------------------------------------------------------------------------------------


def test_an_update_files_bytes_are_pinned_literally() -> None:
    file = written(from_state_dict({"n": np.array(-2, np.int16), "w": np.array([[1.0, -2.5]], np.float32)}), 1203)
    header = (
        b'{"__metadata__":{"data_sha256":"be09c4fa840db52bfe9e834d2aa67b57fbe616079d80ac0fc792878966590578",'
        b'"format":"pt","num_examples":"1203"},'
        b'"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},"n":{"dtype":"I16","shape":[],"data_offsets":[8,10]}}'
    )
    header += b" " * (-len(header) % 8)
    assert file == struct.pack("<Q", len(header)) + header + bytes.fromhex("0000803f 000020c0 feff")


def test_an_update_file_in_a_wire_dtype_is_pinned_literally() -> None:
    file = written(from_state_dict({"w": np.array([1.0, -2.5], np.float32), "h": np.array([1], np.float16)}), 7, "BF16")
    header = (
        b'{"__metadata__":{"data_sha256":"a6f5a20e1fa55825ae36d6b74e253571b76a8b3ae3041b780b0cc07a441e8543",'
        b'"format":"pt","num_examples":"7","original_dtypes":"{\\"w\\":\\"F32\\"}"},'
        b'"w":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},"h":{"dtype":"F16","shape":[1],"data_offsets":[4,6]}}'
    )
    header += b" " * (-len(header) % 8)
    assert file == struct.pack("<Q", len(header)) + header + bytes.fromhex("803f 20c0 003c")


def test_an_update_file_opens_with_the_safetensors_library(tmp_path: Path) -> None:
    values = {
        "a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "c": torch.tensor(3), "d": torch.tensor([True, False]),
        "e": torch.empty(0, 2), "f": torch.randn(2).half(), "g": torch.arange(3, dtype=torch.uint8),
    }  # fmt: skip
    path = tmp_path / "update.safetensors"
    path.write_bytes(written(from_state_dict(values), 12))
    loaded = safetensors.torch.load_file(path)
    assert loaded.keys() == values.keys()
    for name, value in values.items():
        assert loaded[name].dtype == value.dtype
        assert torch.equal(loaded[name], value)
    with safetensors.safe_open(path, "pt") as file:
        assert file.metadata().items() >= {"format": "pt", "num_examples": "12"}.items()


def test_the_same_weights_give_the_same_bytes_in_any_order_of_the_state_dict() -> None:
    values = weights(1)
    reverse = dict(reversed(list(values.items())))
    assert written(from_state_dict(values)) == written(from_state_dict(reverse))
    assert written(from_state_dict(values)) == safetensors_order(values)


def safetensors_order(values: dict[str, Any]) -> bytes:
    """Our header, and the data section as the safetensors library lays it out."""
    theirs = safetensors.numpy.save(values)
    data = theirs[8 + header_length(theirs, len(theirs)) :]
    ours = written(from_state_dict(values))
    return ours[: len(ours) - len(data)] + data


# --- state_dicts ---------------------------------------------------------------------------------------------------


@given(
    st_numpy.arrays(
        st.sampled_from(
            ["<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "<u8", "<u4", "<u2", "|u1", "|b1", ">f4", ">i8"]
        ),
        st_numpy.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
        fill=st.nothing(),
    )
)
def test_any_numpy_array_is_stored_little_endian_in_c_order(array: Any) -> None:
    loaded = safetensors.numpy.load(written(from_state_dict({"x": array})))["x"]
    assert loaded.shape == array.shape
    assert loaded.dtype == array.dtype.newbyteorder("<")
    assert loaded.tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()


def test_strided_transposed_and_trained_tensors_are_stored_by_value() -> None:
    base = torch.arange(12, dtype=torch.float32).reshape(3, 4)
    values = {"t": base.T, "s": base[:, ::2], "p": torch.nn.Parameter(base), "tied": base, "view": base[1]}
    loaded = safetensors.torch.load(written(from_state_dict(values)))
    assert all(torch.equal(loaded[name], value) for name, value in values.items())
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert np.array_equal(
        safetensors.numpy.load(written(from_state_dict({"f": np.asfortranarray(array).T})))["f"], array.T
    )


@pytest.mark.parametrize("value", [None, {}, [], "weights", 3, [("a", np.zeros(1))]])
def test_what_is_no_state_dict_is_refused(value: Any) -> None:
    with pytest.raises(BadInput, match=r"Expected a state_dict.*Pass model.state_dict\(\)"):
        from_state_dict(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1.0, 2.0], "Entry 'w' of the state_dict is a list, expected a torch.Tensor or numpy array"),
        (1.0, "is a float"),
        (None, "is a NoneType"),
        ({"nested": 1}, "is a dict"),
        (np.array([None]), "dtype object, which is not averaged; supported: F64, F32"),
        (np.array(["x"]), "which is not averaged"),
        (np.zeros(2, dtype=[("a", "f4")]), "which is not averaged"),
        (np.zeros(2, np.complex64), "dtype complex64, which is not averaged"),
        (np.array(["2020-01-01"], "M8[D]"), "which is not averaged"),
        (torch.zeros(2, dtype=torch.complex64), "dtype torch.complex64, which is not averaged"),
        (torch.zeros(2).to(torch.float8_e4m3fn), "which is not averaged"),
        (torch.eye(2).to_sparse(), "has no dense values.*Pass a dense one"),
        (torch.zeros(2, device="meta"), "has no dense values"),
    ],
)
def test_an_entry_that_cannot_be_averaged_is_refused_by_name(value: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message) as caught:
        from_state_dict({"fine": np.zeros(2, np.float32), "w": value})
    assert "'w'" in str(caught.value)


@pytest.mark.parametrize("name", [0, None, ("a",), "__metadata__", "half \ud800 pair", "x" * 1025])
def test_a_tensor_name_that_safetensors_cannot_hold_is_refused(name: Any) -> None:
    with pytest.raises(BadInput, match=r"a tensor's name is a text .* other than '__metadata__'.*Rename it"):
        from_state_dict({name: np.zeros(2, np.float32), "w": np.zeros(2, np.float32)})


# --- wire dtypes ---------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(st.lists(st.floats(-60000, 60000, width=32), min_size=1, max_size=20), st.sampled_from(["BF16", "F16"]))
def test_wire_values_are_rounded_as_torch_rounds_them(values: list[float], wire: str) -> None:
    tensor = torch.tensor(values, dtype=torch.float32)
    file = written(from_state_dict({"w": tensor, "n": torch.tensor(3)}), 5, wire)
    loaded = safetensors.torch.load(file)
    assert torch.equal(loaded["w"], tensor.to(torch.bfloat16 if wire == "BF16" else torch.float16))
    assert loaded["n"].dtype == torch.int64
    header = parse_update_header(file[8 : 8 + header_length(file, len(file))], len(file))
    assert [(t.name, t.dtype) for t in header.table.tensors] == [("n", "I64"), ("w", "F32")]
    assert header.dtypes == ("I64", wire)


def test_a_value_beyond_float16_is_refused_and_the_other_wire_dtype_proposed() -> None:
    with pytest.raises(BadInput, match=r"Tensor 'w' has values beyond the range of F16.*Use --wire bfloat16"):
        written(from_state_dict({"w": np.array([1.0, 70000.0], np.float32)}), 1, "F16")


# 0x7fffffff is the NaN that GPUs make; a careless rounding turns it into -0.0.
@pytest.mark.parametrize("bits", [0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001, 0x7F800000, 0xFF800000])
@pytest.mark.parametrize("wire", ["BF16", "F16"])
def test_nan_and_infinity_are_not_lost_in_a_wire_dtype(bits: int, wire: str) -> None:
    values = np.array([0x3F800000, bits], dtype="<u4").view("<f4")
    with pytest.raises(BadInput, match="Tensor 'w' has NaN or infinite values"):
        written(from_state_dict({"w": values}), 1, wire)


@pytest.mark.parametrize("examples", [0, -5, 10**9 + 1, True, 2.5, "7", None])
def test_an_absurd_example_count_is_refused_with_the_range(examples: Any) -> None:
    with pytest.raises(
        BadInput, match=r"an example count of .* is not a valid weight.*from 1 to 1000000000.*Pass the number"
    ):
        written(from_state_dict(weights(1)), examples)


# --- files ---------------------------------------------------------------------------------------------------------


def test_a_safetensors_file_and_a_pytorch_file_of_one_model_give_the_same_update(tmp_path: Path) -> None:
    values = {"a": torch.randn(3, 4), "b": torch.randn(5).bfloat16(), "n": torch.tensor(3), "e": torch.empty(0)}
    safetensors.torch.save_file(values, tmp_path / "m.safetensors", metadata={"any": "thing"})
    torch.save(values, tmp_path / "m.pt")
    torch.save(OrderedDict(values), tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    files = {written(from_file(tmp_path / name), 3) for name in ("m.safetensors", "m.pt", "old.pt")}
    assert files == {written(from_state_dict(values), 3)}


def test_a_safetensors_file_whose_header_length_looks_like_a_pickle_is_read_as_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 640 bytes of header: the file begins with 80 02, as pickles do.
    table = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    path = tmp_path / "m.safetensors"
    path.write_bytes(file_bytes(json.dumps(table).encode().ljust(640), bytes(4)))
    assert path.read_bytes()[:2] == b"\x80\x02"
    monkeypatch.setattr("orchestrator.client.sources._from_torch_file", None)
    assert [t.name for t in from_file(path).table.tensors] == ["w"]


def test_a_large_file_is_read_in_pieces(tmp_path: Path) -> None:
    values = {"w": np.arange(3_000_000, dtype=np.float32)}
    safetensors.numpy.save_file(values, tmp_path / "m.safetensors")
    tensors = from_file(tmp_path / "m.safetensors")
    pieces = list(tensors.read(0))
    assert len(pieces) == 3
    assert b"".join(pieces) == values["w"].tobytes()
    assert written(tensors, 1, "BF16") == written(from_state_dict(values), 1, "BF16")


def bad_files() -> dict[str, tuple[bytes, str]]:
    good = update_bytes(weights(1))
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    two = {"a": entry, "b": {**entry, "data_offsets": [4, 12]}}
    gap = {"a": entry, "b": {**entry, "data_offsets": [12, 20]}}
    return {
        "text": (b"epoch,loss\n1,0.5\n", "announce a header of"),
        "empty": (b"", "0 bytes long"),
        "short": (b"abc", "3 bytes long"),
        "truncated": (good[:-1], "truncated or padded"),
        "truncated_header": (good[:50], "truncated one"),
        "trailing": (good + b"\0", "truncated or padded"),
        "length_lies": (struct.pack("<Q", 2**63) + good[8:], "announce a header of"),
        "overlap": (file_bytes(two, bytes(12)), "without gaps"),
        "gap": (file_bytes(gap, bytes(20)), "without gaps"),
        "twice": (file_bytes(b'{"a":%s,"a":%s}' % ((json.dumps(entry).encode(),) * 2), bytes(8)), "occurs twice"),
        "huge": (file_bytes({"a": {**entry, "shape": [2**60]}}, bytes(8)), "takes 4611686018427387904 bytes"),
        "utf8": (file_bytes(b'{"\xff\xfe":{}}'), "not JSON"),
        "dtype": (file_bytes({"a": {**entry, "dtype": "F8_E5M2"}}, bytes(8)), "not averaged; supported"),
        "shape": (file_bytes({"a": {**entry, "shape": 2}}, bytes(8)), "its shape is not a list"),
        "deep": (file_bytes(b"[" * 100_000), "not JSON"),
        "no_tensors": (file_bytes({}), "the file has no tensors"),
    }


@pytest.mark.parametrize("name", list(bad_files()))
def test_a_file_that_is_no_model_is_refused_by_path_with_what_was_expected(name: str, tmp_path: Path) -> None:
    body, message = bad_files()[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(body)
    with pytest.raises(BadInput, match=message) as caught:
        from_file(path)
    assert str(path) in str(caught.value)
    assert "Expected a" in str(caught.value)


def test_a_file_that_cannot_be_read_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"Cannot read .*missing: No such file.*Name a safetensors or PyTorch"):
        from_file(tmp_path / "missing")
    with pytest.raises(BadInput, match=r"Cannot read .*: Is a directory"):
        from_file(tmp_path)


def test_a_file_that_becomes_shorter_while_it_is_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(update_bytes(weights(1)))
    tensors = from_file(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(BadInput, match="became shorter while it was read"):
        written(tensors)


class Evil:
    """What a hostile client would send: unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.write_text, (self.path, "owned"))


@pytest.mark.parametrize("legacy", [False, True])
def test_code_in_a_pytorch_file_is_refused_and_never_run(tmp_path: Path, legacy: bool) -> None:
    torch.save(
        {"w": torch.zeros(1), "x": Evil(tmp_path / "owned")},
        tmp_path / "m.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    with pytest.raises(BadInput, match=r"not a PyTorch state_dict of tensors.*Save model.state_dict\(\)") as caught:
        from_file(tmp_path / "m.pt")
    assert "m.pt" in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_a_plain_pickle_is_refused_and_never_run(tmp_path: Path) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps(Evil(tmp_path / "owned"), protocol))
        with pytest.raises(BadInput, match=r"Expected a safetensors file|not a PyTorch state_dict"):
            from_file(path)
    assert not (tmp_path / "owned").exists()


def test_the_refusal_of_a_pickle_that_runs_code_names_the_code_and_does_not_advise_to_run_it(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.save({"w": Evil(tmp_path / "owned")}, path)
    with pytest.raises(BadInput, match=r"tensors only \(Unsupported \S+") as caught:
        from_file(path)
    assert "weights_only" not in str(caught.value)
    assert str(caught.value).isprintable(), "torch's own message has escape sequences for the terminal"
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.zeros(3), "Expected a state_dict"),
        ([torch.zeros(3)], "Expected a state_dict"),
        ({}, "Expected a state_dict"),
        ({"epoch": 3, "model": {"w": torch.zeros(1)}}, "Entry 'epoch' of the state_dict is a int"),
    ],
)
def test_a_pytorch_file_without_a_state_dict_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "m.pt")
    with pytest.raises(BadInput, match=message):
        from_file(tmp_path / "m.pt")


def test_a_whole_pickled_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "m.pt")
    with pytest.raises(BadInput, match=r"Save model.state_dict\(\)"):
        from_file(tmp_path / "m.pt")


def test_a_damaged_pytorch_file_is_refused(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1000)}, tmp_path / "m.pt")
    body = (tmp_path / "m.pt").read_bytes()
    (tmp_path / "m.pt").write_bytes(body[: len(body) // 2])
    with pytest.raises(BadInput, match="not a PyTorch state_dict"):
        from_file(tmp_path / "m.pt")


def test_numpy_clients_need_no_torch(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1)}, tmp_path / "m.pt")
    program = f"""
import sys, pathlib
sys.modules["torch"] = None  # as if it were not installed
import numpy as np
from orchestrator.errors import BadInput
from orchestrator.client.sources import from_file, from_state_dict
assert from_state_dict({{"w": np.zeros(2, np.float32)}}).table.elements == 2
try:
    from_file(pathlib.Path({str(tmp_path / "m.pt")!r}))
except BadInput as error:
    print(error)
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "PyTorch is not installed: pip install 'fedagg[torch]'" in result.stdout, result.stderr


# --- storing -------------------------------------------------------------------------------------------------------


def test_an_update_is_stored_under_its_clients_key(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    result = put(aws, lanes_without_functions, "hospital-7", weights(1), 1203)
    assert result.created
    assert result.key == "rounds/r-1/updates/hospital-7.safetensors"
    stored = aws.s3.get_object(Bucket=lanes_without_functions.bucket, Key=result.key)["Body"].read()
    assert stored == update_bytes(weights(1), 1203)
    assert result.nbytes == len(stored)


def test_the_same_update_again_changes_nothing(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    first = put(aws, lanes_without_functions, "a", weights(1))
    before = aws.s3.head_object(Bucket=lanes_without_functions.bucket, Key=first.key)
    again = put(aws, lanes_without_functions, "a", weights(1))
    assert first.created
    assert not again.created
    assert (again.header_sha256, again.data_sha256) == (first.header_sha256, first.data_sha256)
    after = aws.s3.head_object(Bucket=lanes_without_functions.bucket, Key=first.key)
    assert (after["ETag"], after["LastModified"]) == (before["ETag"], before["LastModified"])


@pytest.mark.parametrize("examples", [1, 2])
def test_a_second_different_update_of_a_client_is_a_conflict(
    aws: AwsClients, lanes_without_functions: Deployment, examples: int
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    with pytest.raises(
        RoundConflict, match=r"Client a has already submitted another update to round r-1.*another round"
    ):
        put(aws, lanes_without_functions, "a", weights(2 if examples == 1 else 1), examples)
    stored = aws.s3.get_object(Bucket=lanes_without_functions.bucket, Key=update_key("r-1", "a"))["Body"].read()
    assert stored == update_bytes(weights(1))


def test_an_update_after_pinning_is_refused_and_sent_to_the_next_round(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    pin(aws, lanes_without_functions)
    with pytest.raises(RoundConflict, match=r"Round r-1 is closed.*Submit client b's update to the next round"):
        put(aws, lanes_without_functions, "b", weights(2))
    assert submitted_clients(aws, lanes_without_functions) == ["a"]
    # Who is in already hears that all is well.
    assert not put(aws, lanes_without_functions, "a", weights(1)).created


def test_an_update_that_is_overtaken_by_the_pinning_is_not_told_to_be_in_the_round(
    aws: AwsClients, lanes_without_functions: Deployment, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(aws, lanes_without_functions, "a", weights(1))
    store = submitting.create_large_object

    def overtaken(*arguments: Any) -> bool:
        pin(aws, lanes_without_functions)
        return store(*arguments)

    monkeypatch.setattr(submitting, "create_large_object", overtaken)
    with pytest.raises(RoundConflict, match=r"was closed while client b's update was uploaded, and continues without"):
        put(aws, lanes_without_functions, "b", weights(2))
    # Neither is it told so when it comes again.
    with pytest.raises(RoundConflict, match=r"Round r-1 is closed"):
        put(aws, lanes_without_functions, "b", weights(2))


def pin(aws: AwsClients, deployment: Deployment) -> None:
    """Close the round with what is there."""
    found = list_updates(aws.bucket(deployment.bucket), "r-1")
    record = RoundRecord(RoundRequest("digits", "r-1"), 1.0)
    pinned = pin_updates(aws.bucket(deployment.bucket), record.request, found)
    freeze_round(aws.bucket(deployment.bucket), record, pinned, 1)


@pytest.mark.parametrize("client", ["a/b", "../a", "a.b", "", "a" * 300, "größe", " a"])
def test_a_client_id_that_cannot_be_a_key_stores_nothing(
    aws: AwsClients, lanes_without_functions: Deployment, client: str
) -> None:
    with pytest.raises(InvalidName, match="is not a valid client id"):
        put(aws, lanes_without_functions, client, weights(1))
    with pytest.raises(InvalidName, match="is not a valid round"):
        put(aws, lanes_without_functions, "a", weights(1), round_id=client)
    assert objects(aws, lanes_without_functions) == []


def test_an_unknown_wire_dtype_stores_nothing(aws: AwsClients, lanes_without_functions: Deployment) -> None:
    with pytest.raises(BadInput, match="Unknown wire dtype 'F8'; expected one of bfloat16, float16"):
        submit(
            aws.bucket(lanes_without_functions.bucket), "r-1", "a", from_state_dict(weights(1)), 1, wire="F8"
        )  # fmt: skip
    assert objects(aws, lanes_without_functions) == []


def test_an_update_above_the_limit_goes_up_in_parts_and_is_written_once_as_well(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    # The emulator's parts are of 8 MiB: three of them.
    large = {"w": np.random.default_rng(1).standard_normal(6_000_000, dtype=np.float32)}
    assert put(aws, lanes_without_functions, "a", large, 5).created
    body = aws.s3.get_object(Bucket=lanes_without_functions.bucket, Key=update_key("r-1", "a"))["Body"].read()
    assert body == update_bytes(large, 5)
    assert not put(aws, lanes_without_functions, "a", large, 5).created
    with pytest.raises(RoundConflict, match="already submitted another update"):
        put(aws, lanes_without_functions, "a", large, 6)
    assert aws.s3.list_multipart_uploads(Bucket=lanes_without_functions.bucket).get("Uploads", []) == []


def test_a_model_with_other_tensors_than_the_last_global_model_is_refused_at_once(
    aws: AwsClients, lanes_without_functions: Deployment
) -> None:
    from orchestrator.rounds.request import RoundRecord, RoundRequest

    bucket, key = lanes_without_functions.bucket, global_key("digits", "r-0")
    body = update_bytes(weights(0))
    etag = aws.s3.put_object(Bucket=bucket, Key=key, Body=body)["ETag"]
    latest = LatestModel("digits", "r-0", key, etag, len(body), "0" * 64, 1.0, 2.0)
    aws.s3.put_object(Bucket=bucket, Key=latest_key("digits"), Body=latest.to_bytes())
    aws.s3.put_object(
        Bucket=bucket, Key=round_key("r-1"), Body=RoundRecord(RoundRequest("digits", "r-1"), 1.0).to_bytes()
    )
    with pytest.raises(
        TensorTableMismatch,
        match=r"client a: tensor 'layer.weight' has shape \[2, 2\], expected \[3, 5\] as in .*, of round r-0",
    ) as caught:
        put(aws, lanes_without_functions, "a", weights(1, (2, 2)))
    assert caught.value.client == "a"
    assert submitted_clients(aws, lanes_without_functions) == []
    assert put(aws, lanes_without_functions, "a", weights(1)).created


@pytest.mark.parametrize("body", [None, b"", b"short", b"\xff" * 500])
def test_a_newest_model_that_is_not_what_its_round_published_is_named(
    aws: AwsClients, lanes_without_functions: Deployment, body: bytes | None
) -> None:
    bucket, key = lanes_without_functions.bucket, global_key("digits", "r-0")
    latest = LatestModel("digits", "r-0", key, '"e"', 500, "0" * 64, 1.0, 2.0)
    aws.s3.put_object(Bucket=bucket, Key=latest_key("digits"), Body=latest.to_bytes())
    if body is not None:
        aws.s3.put_object(Bucket=bucket, Key=key, Body=body)
    with pytest.raises(OrchestratorError, match=r"newest global model of digits, s3://.*is not the one that round r-0"):
        latest_table(aws.bucket(bucket), "digits")


# --- reading headers -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guess", [8, 9, 100, 64 * 1024])
def test_a_header_is_read_whole_however_long_it_is(
    aws: AwsClients, lanes_without_functions: Deployment, guess: int
) -> None:
    body = update_bytes(weights(1))
    aws.s3.put_object(Bucket=lanes_without_functions.bucket, Key="x", Body=body)
    raw = read_header(aws.bucket(lanes_without_functions.bucket), "x", len(body), guess=guess)
    assert parse_header(raw, len(body)).table.tensors[0].name == "bn.num_batches_tracked"
