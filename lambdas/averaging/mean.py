"""The weighted mean, element by element, over streams of the clients' values. No AWS, no clock.

Each value of the result is round_to_dtype( sum_c w_c * x_c / sum_c w_c ). The sum is float64, starts from +0.0 and runs
in ascending client id. The quotient is rounded once, to nearest, ties to even. So the bytes of the result depend only
on the updates and their example counts, and not on the number of shards, the size of the pieces, the order of arrival
or the machine.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from lambdas.averaging.fold import load
from lambdas.averaging.pacing import Pacing
from lambdas.protocol.errors import InvalidUpdate, NonFiniteUpdate, shown
from lambdas.protocol.manifest import Participant, RoundManifest
from lambdas.protocol.safetensors import Run, runs
from lambdas.protocol.tensor_table import ITEMSIZE

Float64 = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]

_FLOATING = frozenset(("F64", "F32", "F16", "BF16"))
_NUMPY: dict[str, str] = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2",
    "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|u1",
}  # fmt: skip

# The number of clients at fault that an error names.
_NAMED = 10
# Values per dot product. OpenBLAS divides more than 10,000 among threads (interface/dot.c), which takes many times as
# long in a function that has a fraction of a core.
_DOT = 8 * 1024
# Values that are converted, weighted and added at a time. A block does not fit a core's L2 cache, because the calls per
# block cost more than the cache saves.
BLOCK = 128 * 1024
# Replaces these calls for float32, if the compiled library is installed.
_fold_float32 = load()


def to_float64(raw: memoryview | bytes, dtype: str, out: Float64) -> None:
    """Convert stored values to float64: exactly, but 64-bit integers to the nearest float64.

    Args:
        raw: len(out) little-endian values of `dtype` (a safetensors dtype name).
        out: float64, shape (n,), overwritten.
    """
    if dtype == "BF16":
        # bfloat16 is the upper half of a float32.
        widened = np.frombuffer(raw, dtype="<u2").astype("<u4")
        np.left_shift(widened, 16, out=widened)
        out[:] = widened.view("<f4")
    elif dtype == "BOOL":
        np.not_equal(np.frombuffer(raw, dtype="|u1"), 0, out=out)  # every byte except 0 is True
    else:
        out[:] = np.frombuffer(raw, dtype=_NUMPY[dtype])


def from_float64(values: Float64, dtype: str) -> Bytes:
    """Round float64 values once to `dtype`, to nearest, ties to even.

    Integers are rounded and clipped to their range; BOOL is a majority vote (a tie is False).

    Returns:
        The little-endian bytes, uint8, shape (len(values) * itemsize,).
    """
    if dtype == "BF16":
        return _bfloat16(values).view(np.uint8)
    if dtype[0] == "F":
        return values.astype(_NUMPY[dtype]).view(np.uint8)
    whole = np.rint(values)
    if dtype == "BOOL":
        return whole.astype(np.uint8)
    info = np.iinfo(np.dtype(_NUMPY[dtype]))
    # float(2**63 - 1) is 2**63, which does not fit into 64 bits.
    result = np.clip(whole, float(info.min), np.nextafter(float(info.max), 0.0) if info.bits == 64 else float(info.max))
    converted = result.astype(_NUMPY[dtype])
    converted[whole >= float(info.max)] = info.max
    return converted.view(np.uint8)


def _bfloat16(values: Float64) -> npt.NDArray[np.uint16]:
    # float64 -> float32 -> bfloat16 rounds twice. The result is still correct if the first step rounds to odd, since
    # float32 has more than two extra bits (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums: proved
    # algorithms using rounding to odd", IEEE Trans. Computers 57(4), 2008).
    single = values.astype("<f4")
    widened = single.astype(np.float64)
    bits = single.view("<u4")
    bits -= np.abs(widened) > np.abs(values)  # towards zero ...
    bits |= widened != values  # ... and odd where inexact
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits >> 16).astype("<u2")


def _squares(values: Float64) -> float:
    """The sum of the squares of float64 values, shape (n,)."""
    even = len(values) - len(values) % _DOT
    parts, rest = values[:even].reshape(-1, _DOT), values[even:]
    return float(np.vecdot(parts, parts).sum() + np.dot(rest, rest))


class WeightedSum:
    """Float64 weighted sums of at most `capacity` values, for any number of clients.

    Args:
        sums: the array that is added to, float64, shape (capacity,); None for a new array of zeros.
    """

    def __init__(self, capacity: int, sums: Float64 | None = None) -> None:
        self._sums = np.zeros(capacity, dtype=np.float64) if sums is None else sums
        self._scratch = np.empty(min(capacity, BLOCK), dtype=np.float64)
        self._count = 0 if sums is None else capacity

    def reset(self, count: int) -> None:
        """Start again with `count` values of +0.0."""
        self._count = count
        self._sums[:count] = 0.0

    def add(self, at: int, raw: memoryview, dtype: str, weight: int) -> float:
        """Add weight * x for the stored values x of `raw`, whose first one belongs to index `at`.

        Returns:
            The sum of the squares of weight * x; 0 for integers and booleans.
        """
        itemsize = ITEMSIZE[dtype]
        count = len(raw) // itemsize
        if dtype == "F32" and _fold_float32 is not None:
            return _fold_float32(raw, weight, self._sums[at : at + count])
        squares = 0.0
        for first in range(0, count, BLOCK):
            n = min(BLOCK, count - first)
            scratch = self._scratch[:n]
            to_float64(raw[first * itemsize : (first + n) * itemsize], dtype, scratch)
            if weight != 1:
                np.multiply(scratch, float(weight), out=scratch)
            target = self._sums[at + first : at + first + n]
            np.add(target, scratch, out=target)
            if dtype in _FLOATING:
                squares += _squares(scratch)
        return squares

    def first_non_finite(self) -> int | None:
        """Index of the first sum that is NaN or infinite; None if all are finite."""
        finite = np.isfinite(self._sums[: self._count])
        return None if finite.all() else int(np.argmin(finite))

    def mean(self, total: float, dtype: str) -> Bytes:
        """The sums / `total`, rounded once to `dtype`: uint8, shape (count * itemsize,). Overwrites the sums."""
        sums = self._sums[: self._count]
        np.divide(sums, total, out=sums)
        return from_float64(sums, dtype)

    def park(self, file: IO[bytes], at: int) -> None:
        """Write the sums, without rounding, to value index `at` of `file`."""
        file.seek(at * 8)
        file.write(self._sums[: self._count].data)

    def unpark(self, file: IO[bytes], at: int, count: int) -> None:
        """Read back `count` sums from value index `at` of `file`."""
        self._count = count
        file.seek(at * 8)
        self._sums[:count] = np.frombuffer(file.read(count * 8), dtype=np.float64, count=count)


# --- streams of pieces ---------------------------------------------------------------------------------------------


class Stream(Protocol):
    """Bytes of one update, in order."""

    def readinto(self, view: memoryview) -> object:
        """Fill all of `view` with the next bytes, or raise."""

    def close(self) -> None:
        """Release the stream's resources; called once, also after an error."""


# Opens the bytes start <= b < stop of a participant's data section. May return before the first byte has arrived.
OpenStream = Callable[[Participant, int, int], Stream]


def average_shard(
    manifest: RoundManifest, shard: int, open_stream: OpenStream, write: Callable[[memoryview], object], pacing: Pacing
) -> Float64:
    """Average one shard and write its bytes, in order, piece by piece.

    Returns:
        Per participant the sum of the squares of its floating-point values in this shard, float64, shape (N,). Its last
        digits depend on the pieces; the average does not.

    Raises:
        NonFiniteUpdate: a value is NaN or infinite; names client and tensor.
        InvalidUpdate: a stream finds an update invalid. All clients that are at fault in the same piece are in `each`.
        Any error of `open_stream`, the streams and `write`.
    """
    start, stop = manifest.bounds[shard], manifest.bounds[shard + 1]
    participants = manifest.participants
    groups = [participants[i : i + pacing.max_streams] for i in range(0, len(participants), pacing.max_streams)]
    window = pacing.window_elements if len(groups) > 1 else max(1, stop - start)
    total = WeightedSum(min(pacing.piece_elements, stop - start))
    squares = np.zeros(len(participants), dtype=np.float64)
    buffer = memoryview(bytearray(pacing.read_bytes))
    # NaN, Inf and overflow are found in the sums and reported as errors, so numpy's warnings are not needed.
    with tempfile.TemporaryFile(prefix="sums-") as parked, np.errstate(all="ignore"):
        for first in range(start, stop, window):
            last = min(stop, first + window)
            pieces = list(_pieces(manifest, first, last, pacing))
            for number, group in enumerate(groups):
                of_group = squares[number * pacing.max_streams :][: len(group)]
                with ExitStack() as stack:
                    streams = _open(manifest, group, first, last, open_stream, stack)
                    for piece in pieces:
                        if group is groups[0]:
                            total.reset(piece.stop - piece.start)
                        else:
                            total.unpark(parked, piece.start - first, piece.stop - piece.start)
                        of_piece = _add(piece, group, streams, total, buffer)
                        _check_finite(manifest, piece, group, total, of_piece, open_stream)
                        of_group += of_piece
                        if group is groups[-1]:
                            write(total.mean(manifest.total_examples, piece.dtype).data)
                        else:
                            total.park(parked, piece.start - first)
        weights = np.array([p.num_examples for p in participants], dtype=np.float64)
        return squares / weights / weights


# --- the whole model in memory: what the aggregators of trees do -----------------------------------------------------


def add_up(manifest: RoundManifest, sums: Float64, open_stream: OpenStream, pacing: Pacing) -> None:
    """Add weight * x of every participant, in order, to `sums`, float64, shape (elements,), which starts as +0.0.

    Raises:
        NonFiniteUpdate: a value is NaN or infinite; names client and tensor.
        Any error of `open_stream` and the streams.
    """
    participants = manifest.participants
    pieces = list(_pieces(manifest, 0, manifest.table.elements, pacing))
    buffer = memoryview(bytearray(pacing.read_bytes))
    with np.errstate(all="ignore"):
        for i in range(0, len(participants), pacing.max_streams):
            group = participants[i : i + pacing.max_streams]
            with ExitStack() as stack:
                streams = _open(manifest, group, 0, manifest.table.elements, open_stream, stack)
                for piece in pieces:
                    total = WeightedSum(piece.stop - piece.start, sums[piece.start : piece.stop])
                    squares = _add(piece, group, streams, total, buffer)
                    _check_finite(manifest, piece, group, total, squares, open_stream)


def write_mean(manifest: RoundManifest, sums: Float64, write: Callable[[memoryview], object], pacing: Pacing) -> None:
    """Write sums / total examples, rounded once to each tensor's dtype, in order. Overwrites `sums`."""
    for piece in _pieces(manifest, 0, manifest.table.elements, pacing):
        total = WeightedSum(piece.stop - piece.start, sums[piece.start : piece.stop])
        write(total.mean(manifest.total_examples, piece.dtype).data)


def _pieces(manifest: RoundManifest, first: int, last: int, pacing: Pacing) -> Iterator[Run]:
    for run in runs(manifest, first, last):
        for start in range(run.start, run.stop, pacing.piece_elements):
            yield Run(start, min(run.stop, start + pacing.piece_elements), run.dtype, run.stored)


def _open(
    manifest: RoundManifest,
    group: Sequence[Participant],
    first: int,
    last: int,
    open_stream: OpenStream,
    stack: ExitStack,
) -> list[Stream]:
    """One stream per client of the group. All are opened before the first one is read, to keep the network busy."""
    ranges = [(table.byte_at(first), table.byte_at(last)) for table in manifest.layout_tables]
    streams = []
    for participant in group:
        stream = open_stream(participant, *ranges[participant.layout])
        stack.callback(stream.close)
        streams.append(stream)
    return streams


def _add(
    piece: Run, group: Sequence[Participant], streams: Sequence[Stream], total: WeightedSum, buffer: memoryview
) -> list[float]:
    """Add a piece of every client of a group; returns the sums of squares of their weighted values."""
    count = piece.stop - piece.start
    squares, wrong = [], []
    for participant, stream in zip(group, streams, strict=True):
        dtype = piece.stored[participant.layout]
        itemsize = ITEMSIZE[dtype]
        step = len(buffer) // itemsize
        of_client = 0.0
        try:
            for at in range(0, count, step):
                view = buffer[: min(step, count - at) * itemsize]
                stream.readinto(view)
                of_client += total.add(at, view, dtype, participant.num_examples)
        except InvalidUpdate as error:
            if error.client is None:
                raise
            wrong.append(error)
        squares.append(of_client)
    if wrong:
        raise InvalidUpdate.of_several(wrong)
    return squares


def _check_finite(
    manifest: RoundManifest,
    piece: Run,
    group: Sequence[Participant],
    total: WeightedSum,
    squares: Sequence[float],
    open_stream: OpenStream,
) -> None:
    at = total.first_non_finite()
    if at is not None:
        suspects = [p for p, of_client in zip(group, squares, strict=True) if not np.isfinite(of_client)]
        raise _blame(manifest, piece, piece.start + at, suspects, open_stream)


def _blame(
    manifest: RoundManifest, piece: Run, element: int, suspects: Sequence[Participant], open_stream: OpenStream
) -> NonFiniteUpdate:
    """The error for a piece whose sum at flat index `element` is not finite; names clients and tensors."""
    by_tensor: dict[str, list[tuple[str, str]]] = {}
    for participant in suspects:
        values = _read_again(manifest, piece, participant, open_stream)
        finite = np.isfinite(values * float(participant.num_examples))
        if not finite.all():
            first = int(np.argmin(finite))
            has = f"has {_spell(values[first])}"
            if np.isfinite(values[first]):
                has += f", too large for its {participant.num_examples} examples"
            by_tensor.setdefault(_tensor_name(manifest, piece.start + first), []).append((participant.client, has))
    if not by_tensor:
        return NonFiniteUpdate(f"tensor {_tensor_name(manifest, element)}: the weighted sum exceeds float64's range")
    each = [
        NonFiniteUpdate(f"tensor {tensor}: client {client} {has}", client=client)
        for tensor, culprits in by_tensor.items()
        for client, has in culprits
    ]
    sentences = [f"tensor {tensor}: {_named(culprits)}" for tensor, culprits in by_tensor.items()]
    return NonFiniteUpdate("; ".join(sentences), client=each[0].client, each=each)


def _read_again(manifest: RoundManifest, piece: Run, participant: Participant, open_stream: OpenStream) -> Float64:
    """A participant's values of a piece, float64, shape (piece.stop - piece.start,)."""
    dtype = piece.stored[participant.layout]
    values: Float64 = np.empty(piece.stop - piece.start, dtype=np.float64)
    raw = bytearray(len(values) * ITEMSIZE[dtype])
    at = manifest.layout_tables[participant.layout].byte_at(piece.start)
    stream = open_stream(participant, at, at + len(raw))
    try:
        stream.readinto(memoryview(raw))
    finally:
        stream.close()
    to_float64(memoryview(raw), dtype, values)
    return values


def _tensor_name(manifest: RoundManifest, element: int) -> str:
    return shown(manifest.table.tensors[manifest.table.tensor_at(element)].name)


def _named(culprits: Sequence[tuple[str, str]]) -> str:
    more = f" and {len(culprits) - _NAMED} more clients" if len(culprits) > _NAMED else ""
    return ", ".join(f"client {client} {has}" for client, has in culprits[:_NAMED]) + more


def _spell(value: Any) -> str:
    if np.isfinite(value):
        return f"{value:.3g}"
    return "NaN" if np.isnan(value) else ("Inf" if value > 0 else "-Inf")
