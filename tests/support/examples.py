"""A manifest with every field, and its JSON."""

from __future__ import annotations

from typing import Any

from lambdas.protocol.manifest import Exclusion, Output, Participant, RoundManifest
from lambdas.protocol.tensor_table import TensorSpec, TensorTable

DIGEST = "0123456789abcdef" * 4
TABLE = TensorTable((TensorSpec("w", "F32", (2, 3)), TensorSpec("b", "BF16", (5,)), TensorSpec("n", "I64", ())))


def a_manifest(**changes: Any) -> RoundManifest:
    values: dict[str, Any] = {
        "round_id": "r-1",
        "model": "digits",
        "participants": (
            Participant("a", "rounds/r-1/updates/a.safetensors", '"e1"', 142, 100, 3, DIGEST, "ab" * 32, 0),
            Participant("b", "rounds/r-1/updates/b.safetensors", '"e2"', 130, 100, 1, DIGEST, None, 1),
        ),
        "table": TABLE,
        "layouts": (("F32", "BF16", "I64"), ("F16", "BF16", "I64")),
        "bounds": (0, 5, 12),
        "output": Output("multipart", "models/digits/r-1/global.safetensors", "upload-7"),
        "created_at": 1767225600.5,
        "revision": 1,
        "excluded": (Exclusion("c", "NonFiniteUpdate", "has NaN"),),
        "norms": "objects",
        **changes,
    }
    return RoundManifest(**values)


MANIFEST_JSON = (
    '{"bounds":[0,5,12],"created_at":1767225600.5,'
    '"excluded":[{"client":"c","kind":"NonFiniteUpdate","reason":"has NaN"}],'
    '"layouts":[["F32","BF16","I64"],["F16","BF16","I64"]],'
    '"model":"digits","norms":"objects","output":{"key":"models/digits/r-1/global.safetensors","kind":"multipart",'
    '"upload_id":"upload-7"},"participants":[{"client":"a","data_offset":100,"data_sha256":"' + "ab" * 32 + '",'
    '"etag":"\\"e1\\"","header_sha256":"' + DIGEST + '","key":"rounds/r-1/updates/a.safetensors","layout":0,'
    '"num_examples":3,"size":142},{"client":"b",'
    '"data_offset":100,"data_sha256":null,"etag":"\\"e2\\"","header_sha256":"' + DIGEST + '",'
    '"key":"rounds/r-1/updates/b.safetensors","layout":1,"num_examples":1,"size":130}],'
    '"revision":1,"round_id":"r-1","schema":2,"tensors":[["w","F32",[2,3]],["b","BF16",[5]],["n","I64",[]]],'
    '"tensors_sha256":"52ff543f280b796d7c39af6c65f86c3947eb9ee2d2e4110e218f9b8511193115","topology":"grads-sharding"}'
)
