"""Streams of pinned updates against an S3 that cuts, stalls, throttles and lies."""

from __future__ import annotations

import random

import pytest

from lambdas.averaging.mean import average_shard
from lambdas.averaging.pacing import Pacing
from lambdas.protocol.errors import InvalidUpdate, StorageUnavailable, UpdateChanged
from lambdas.storage.bucket import Bucket
from lambdas.storage.updates import Retry, UpdateReader
from tests.support import servers
from tests.support.manifests import BUCKET, Update, client_name, manifest_of, table_of
from tests.support.s3 import MemoryS3
from tests.support.servers import RangeServer

DATA = random.Random(7).randbytes(300_000 - 300_000 % 4)
FAST = Retry(attempts=3, base_s=0.0, timeout_s=0.3)


@pytest.fixture
def server():
    with RangeServer() as running:
        yield running


class Scene:
    """One update of DATA on a server, and a reader whose sleeps are only counted."""

    def __init__(self, server: RangeServer, clients: int = 1, data: bytes = DATA) -> None:
        self.server = server
        self.updates = [Update(data, header=b"h" * (8 + i % 5)) for i in range(clients)]
        self.manifest = manifest_of(table_of(("U8", len(data))), self.updates)
        for participant, update in zip(self.manifest.participants, self.updates, strict=True):
            server.objects[participant.key] = update.body
        self.participant = self.manifest.participants[0]
        self.slept: list[float] = []
        self.reader = UpdateReader(Bucket(MemoryS3(server), BUCKET), at_once=4, retry=FAST, sleep=self.slept.append)

    def read(self, start: int = 0, stop: int = len(DATA), step: int = 70_000) -> bytes:
        stream = self.reader.open(self.participant, start, stop)
        try:
            out = bytearray()
            while len(out) < stop - start:
                piece = bytearray(min(step, stop - start - len(out)))
                stream.readinto(memoryview(piece))
                out += piece
            return bytes(out)
        finally:
            stream.close()


@pytest.mark.parametrize(("start", "stop"), [(0, len(DATA)), (5, 6), (1000, 200_001), (len(DATA) - 1, len(DATA))])
def test_a_range_is_read_with_one_conditional_get(server, start, stop) -> None:
    scene = Scene(server)
    assert scene.read(start, stop) == DATA[start:stop]
    (request,) = server.requests
    assert request.headers["range"] == f"bytes={8 + start}-{8 + stop - 1}"
    assert request.headers["if-match"] == scene.participant.etag
    assert (scene.reader.counts.gets, scene.reader.counts.retries) == (1, 0)
    assert scene.reader.counts.bytes_read == stop - start


def test_an_empty_range_asks_for_nothing(server) -> None:
    scene = Scene(server)
    scene.reader.open(scene.participant, 7, 7).close()
    assert server.requests == []


def test_a_connection_is_used_again(server) -> None:
    scene = Scene(server)
    for start in range(5):
        assert scene.read(start, 100_000) == DATA[start:100_000]
    assert server.connections == 1
    scene.reader.close()


def test_a_connection_with_bytes_left_is_not_used_again(server) -> None:
    scene = Scene(server)
    stream = scene.reader.open(scene.participant, 0, len(DATA))
    stream.readinto(memoryview(bytearray(10)))
    stream.close()
    assert scene.read() == DATA
    assert server.connections == 2


@pytest.mark.parametrize("closing", [servers.hang_up, servers.reset])
def test_a_kept_connection_that_the_server_has_closed_costs_no_attempt(server, closing) -> None:
    scene = Scene(server)
    for _ in range(4):
        assert scene.read(0, 1000) == DATA[:1000]
        server.script = [closing]  # what the next request on this connection meets
        assert scene.read(0, 1000) == DATA[:1000]
    assert scene.slept == []
    assert scene.reader.counts.retries == 0


def test_a_connection_closed_right_after_an_answer_costs_no_attempt(server) -> None:
    scene = Scene(server)
    for _ in range(10):
        server.script = [servers.serve_and_close]
        assert scene.read(0, 1000) == DATA[:1000]
    assert scene.slept == []


def test_a_server_that_only_hangs_up_uses_the_attempts_up(server) -> None:
    scene = Scene(server)
    server.script = [servers.hang_up] * 50
    with pytest.raises(StorageUnavailable, match="3 consecutive attempts failed"):
        scene.read()
    assert len(server.requests) == 3


@pytest.mark.parametrize("after", [0, 1, 69_999, 70_000, 70_001, len(DATA) - 1])
def test_a_cut_body_is_resumed_at_the_byte_reached(server, after) -> None:
    scene = Scene(server)
    server.script = [servers.cut(after)]
    assert scene.read() == DATA
    first, second = server.requests
    assert second.first == first.first + after
    assert second.last == first.last
    assert second.headers["if-match"] == scene.participant.etag
    assert scene.reader.counts.retries == 1


def test_progress_renews_the_attempts(server) -> None:
    scene = Scene(server)
    server.script = [servers.cut(1000)] * 20
    assert scene.read() == DATA
    assert scene.reader.counts.retries == 20


def test_cuts_without_progress_end(server) -> None:
    scene = Scene(server)
    server.script = [servers.cut(1000), *[servers.cut(0)] * 50]
    with pytest.raises(StorageUnavailable, match=r"client c-00000\) from byte 1008: 3 consecutive attempts"):
        scene.read()


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("500 Internal Server Error", "InternalError"),
        ("503 Service Unavailable", "SlowDown"),
        ("503 Slow Down", "ServiceUnavailable"),
        ("429 Too Many Requests", "TooManyRequests"),
        ("400 Bad Request", "RequestTimeout"),
    ],
)
def test_server_faults_are_tried_again_within_bounds(server, status, code) -> None:
    scene = Scene(server)
    server.script = [servers.error(status, code)] * 2
    assert scene.read() == DATA
    assert len(scene.slept) == 2
    server.script = [servers.error(status, code)] * 50
    with pytest.raises(StorageUnavailable, match=code):
        scene.read()


def test_the_wait_between_attempts_is_bounded(server) -> None:
    scene = Scene(server)
    retry = Retry(attempts=40, base_s=1.0, cap_s=3.0)
    scene.reader = UpdateReader(Bucket(MemoryS3(server), BUCKET), at_once=4, retry=retry, sleep=scene.slept.append)
    server.script = [servers.error("503 Slow Down", "SlowDown")] * 40
    with pytest.raises(StorageUnavailable):
        scene.read()
    assert len(scene.slept) == 39
    assert max(scene.slept) <= 3.0


def test_a_hung_connection_is_given_up_after_the_timeout(server) -> None:
    scene = Scene(server)
    server.script = [servers.hang(2.0)]
    assert scene.read() == DATA
    assert scene.reader.counts.retries == 1


def test_an_unreachable_server_ends(server) -> None:
    scene = Scene(server)
    gone = MemoryS3(server)
    gone.generate_presigned_url = lambda *_, **__: "http://127.0.0.1:9/x?y"  # type: ignore[method-assign]
    scene.reader = UpdateReader(Bucket(gone, BUCKET), at_once=4, retry=FAST, sleep=scene.slept.append)
    with pytest.raises(StorageUnavailable, match="ConnectionRefusedError"):
        scene.read()


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        (servers.error("412 Precondition Failed", "PreconditionFailed"), UpdateChanged, "was replaced"),
        (servers.error("404 Not Found", "NoSuchKey"), UpdateChanged, "was deleted"),
        (servers.error("416 Range Not Satisfiable", "InvalidRange"), InvalidUpdate, "answered 416"),
        (servers.with_headers("200 OK", lambda _: {}, DATA), InvalidUpdate, "answered 200"),
        (servers.error("403 Forbidden", "AccessDenied"), StorageUnavailable, "403 AccessDenied"),
    ],
)
def test_answers_that_no_attempt_can_change_are_final(server, answer, error, words) -> None:
    scene = Scene(server)
    server.script = [answer]
    with pytest.raises(error, match=words) as caught:
        scene.read()
    assert len(server.requests) == 1
    if isinstance(caught.value, InvalidUpdate):
        assert caught.value.client == client_name(0)


def test_an_update_replaced_between_two_attempts_is_found_out(server) -> None:
    scene = Scene(server)
    other = Update(DATA[::-1])

    def cut_and_replace(handler, request) -> bool:
        server.objects[request.key] = other.body
        return servers.cut(1000)(handler, request)

    server.script = [cut_and_replace]
    with pytest.raises(UpdateChanged):
        scene.read()


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        (lambda r: {"Content-Range": f"bytes {r.first + 1}-{r.last + 1}/{len(r.body)}"}, None),
        (lambda r: {"Content-Range": f"bytes {r.first}-{r.last - 4}/{len(r.body)}"}, None),
        (lambda r: {"Content-Range": f"bytes {r.first}-{r.last}/{len(r.body) + 1}"}, None),
        (lambda r: {"Content-Range": f"bytes {r.first}-{r.last}/*"}, None),
        (lambda r: {"Content-Range": "nonsense"}, None),
        (lambda r: {}, DATA[:100]),
        (lambda r: {}, DATA + b"more"),
    ],
)
def test_an_answer_of_another_range_or_length_is_refused(server, headers, body) -> None:
    scene = Scene(server)
    server.script = [servers.with_headers("206 Partial Content", headers, body)]
    with pytest.raises(InvalidUpdate, match="Content-Range"):
        scene.read()


def test_a_head_that_is_no_http_is_tried_again(server) -> None:
    scene = Scene(server)

    def garbage(handler, request) -> bool:
        handler.wfile.write(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        return False

    server.script = [garbage]
    assert scene.read() == DATA


def test_a_head_in_many_small_packets_and_a_continue(server) -> None:
    scene = Scene(server)

    def trickle(handler, request) -> bool:
        head = b"HTTP/1.1 206 Partial Content\r\ncontent-length: 10\r\ncontent-RANGE:bytes 8-17/%d\r\n\r\n"
        for byte in head % len(request.body) + request.part:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
        return True

    server.script = [trickle]
    assert scene.read(0, 10) == DATA[:10]


def test_a_thousand_clients_keep_few_connections_open(server) -> None:
    scene = Scene(server, clients=1000, data=DATA[:400])
    out = bytearray()
    average_shard(scene.manifest, 0, scene.reader.open, out.extend, Pacing(piece_elements=150))
    assert bytes(out) == DATA[:400]
    assert scene.reader.counts.gets == 1000
    assert server.most_open <= 64
    assert server.connections <= 64
    scene.reader.close()


def test_faults_in_many_interleaved_streams_do_not_change_the_bytes(server) -> None:
    rng = random.Random(3)
    scene = Scene(server, clients=20, data=DATA[:40_000])
    faults = [servers.cut(0), servers.cut(777), servers.hang_up, servers.reset]
    faults += [servers.error("503 Slow Down", "SlowDown"), servers.error("500 Internal Error", "InternalError")]
    server.script = [rng.choice([*faults, servers.serve]) for _ in range(60)]
    scene.reader = UpdateReader(
        Bucket(MemoryS3(server), BUCKET), at_once=20, retry=Retry(attempts=9, timeout_s=1.0), sleep=scene.slept.append
    )
    out = bytearray()
    average_shard(scene.manifest, 0, scene.reader.open, out.extend, Pacing(piece_elements=4096))
    assert bytes(out) == DATA[:40_000]
    assert scene.slept
