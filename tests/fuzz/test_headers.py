"""Hostile safetensors headers: refused by arithmetic, before anything of the size that they claim is allocated."""

from __future__ import annotations

import json
import subprocess
import sys
import tracemalloc
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from lambdas.protocol.safetensors import (
    MAX_HEADER_BYTES,
    header_length,
    parse_header,
    parse_update_header,
)
from lambdas.protocol.tensor_table import ITEMSIZE, TensorTable
from tests.support.hostile import FILE, METADATA, TABLE, changed_bytes, dumps, hostile, survives, values

SIZE = len(FILE) + TABLE.nbytes
HEADER = json.loads(FILE[8:])

_NUMBERS = st.sampled_from([0, 1, 2, 4, 8, 9, -1, 2**31, 2**60, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, None, True, "4"])
_ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.sampled_from([*ITEMSIZE, "F8_E4M3", "f32", "", None, 4]),
        "shape": st.lists(_NUMBERS, max_size=4) | values(),
        "data_offsets": st.lists(_NUMBERS, min_size=2, max_size=2) | values(),
        "more": values(),
    },
)
_METADATA = st.dictionaries(
    st.sampled_from([*METADATA, "x", "\ud800"]),
    st.sampled_from(
        ["0", "1", "-5", "1e3", "9" * 18, "9" * 5000, "²", "[" * 5000, "{}", '{"t1":"F64"}', "ab" * 32, ""]
    ),
)


def check(raw: bytes, size: int) -> None:
    """Parse, and hold what was accepted against the file's length."""
    header = survives("header", lambda: parse_header(raw, size))
    if header is not None:
        table: TensorTable = header.table
        assert header.data_offset == 8 + len(raw)
        assert header.data_offset + table.nbytes == size
        assert all(0 <= d < 2**63 for t in table.tensors for d in t.shape)
    survives("update header", lambda: parse_update_header(raw, size))


def test_a_made_up_header_is_refused_in_a_sentence() -> None:
    entries = st.dictionaries(st.sampled_from(["a", "b", "c", "", "\ud800", "n" * 2000]), _ENTRIES, max_size=3)

    @given(entries, _METADATA | values(), st.integers(0, 100) | st.sampled_from([2**31, 2**60, 2**63]))
    def run(tensors: dict[str, Any], metadata: Any, more: int) -> None:
        raw = dumps(tensors | {"__metadata__": metadata})
        check(raw, 8 + len(raw) + more)

    run()


def test_a_changed_header_is_refused_in_a_sentence() -> None:
    @given(hostile(HEADER), st.sampled_from([0, 1, -1, 2**40]))
    def run(raw: bytes, more: int) -> None:
        check(raw, 8 + len(raw) + TABLE.nbytes + more)

    run()


def test_a_changed_file_is_refused_in_a_sentence() -> None:
    @given(changed_bytes(FILE), st.sampled_from([0, 0, 1, -1, -SIZE, 2**40]))
    def run(start: bytes, more: int) -> None:
        size = max(0, len(start) + TABLE.nbytes + more)
        length = survives("length", lambda: header_length(start, size))
        if length is not None:
            assert length <= MAX_HEADER_BYTES
            check(start[8 : 8 + length], size)

    run()


def test_overlaps_gaps_and_orders_of_tensors_are_told_apart_exactly() -> None:
    @given(st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), min_size=1, max_size=4), st.integers(0, 24))
    def run(spans: list[tuple[int, int]], data: int) -> None:
        entries = {
            f"t{i}": {"dtype": "U8", "shape": [max(0, end - begin)], "data_offsets": [begin, end]}
            for i, (begin, end) in enumerate(spans)
        }
        raw = dumps(entries)
        header = survives("spans", lambda: parse_header(raw, 8 + len(raw) + data))
        covered = sorted(byte for begin, end in spans for byte in range(begin, end))
        if header is not None:
            assert covered == list(range(data)), "every byte of the data section belongs to one tensor"

    run()


def test_a_header_takes_memory_by_its_length_and_not_by_what_it_claims() -> None:
    @given(hostile(HEADER), st.sampled_from([0, 2**60]))
    def run(raw: bytes, more: int) -> None:
        tracemalloc.start()
        try:
            survives("header, memory", lambda: parse_update_header(raw, 8 + len(raw) + more))
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 100_000 + 60 * len(raw)

    run()


_BOMBS = """
import json, resource, sys
from lambdas.averaging.mean import average_shard
from lambdas.averaging.pacing import Pacing
from lambdas.protocol.errors import FederationError
from lambdas.protocol.manifest import RoundManifest
from lambdas.protocol.safetensors import header_length, parse_update_header
from lambdas.protocol.tensor_table import TensorTable
from tests.support.manifests import Update, manifest_of, table_of

manifest = json.loads(manifest_of(table_of(("F32", 7)), [Update(b"0" * 28)]).to_bytes())
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, used + ROOM))

def refused(call):
    try:
        call()
    except FederationError as error:
        print(str(error)[:100])
        return
    raise SystemExit("accepted")

def header(shape, offsets, size):
    entry = {"dtype": "F32", "shape": shape, "data_offsets": offsets}
    raw = json.dumps({"__metadata__": {"num_examples": "1"}, "w": entry}).encode()
    refused(lambda: parse_update_header(raw, size or 8 + len(raw) + 4))

header([2**60], [0, 2**62], 0)
header([2**60], [0, 4], 0)
header([2**62, 2**62], [0, 4], 0)
header([2**60], [0, 2**62], 100)
refused(lambda: header_length((2**63 - 1).to_bytes(8, "little"), 2**63))
refused(lambda: header_length((99_000_000).to_bytes(8, "little"), 10**9))
refused(lambda: parse_update_header(b"[" * 10_000_000, 10**9))
refused(lambda: parse_update_header(b'{"a":' * 2_000_000, 10**9))
for elements in (2**60, 2**40, 2**33):
    claims = dict(manifest, bounds=[0, elements], tensors=[["w", "F32", [elements]]])
    p = dict(claims["participants"][0], size=claims["participants"][0]["data_offset"] + 4 * elements)
    claims["participants"] = [p]
    claims["tensors_sha256"] = TensorTable.from_json("x", claims["tensors"]).sha256

    def read_and_average():
        parsed = RoundManifest.from_bytes(json.dumps(claims).encode())
        class Never:
            def __init__(self, *a): pass
            def readinto(self, view): raise FederationError("read")
            def close(self): pass
        average_shard(parsed, 0, Never, print, Pacing())

    refused(read_and_average)
"""


def test_what_claims_two_to_the_sixty_values_allocates_nothing() -> None:
    """In a process that may not grow by more than 64 MiB of address space."""
    program = _BOMBS.replace("ROOM", str(64 * 1024**2))
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stderr[-2000:]
    assert len(result.stdout.splitlines()) == 11, result.stdout
