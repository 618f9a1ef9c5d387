"""What S3 stores: bytes with an ETag, and with a checksum where one was sent."""

from __future__ import annotations

import base64
import hashlib


class StoredBytes(bytes):
    """The bytes of an object or of a part, as S3 has received them.

    Attributes:
        etag: in quotes, as S3 answers it.
        sha256: the SHA-256 that was sent with the bytes, in base64; None where none was sent.
    """

    etag: str
    sha256: str | None

    def __new__(cls, body: bytes, etag: str, sha256: str | None = None) -> StoredBytes:
        self = super().__new__(cls, body)
        self.etag, self.sha256 = etag, sha256
        return self


def etag_of(body: bytes) -> str:
    """The ETag of an object. Bytes that a test has put there itself have the ETag of a single PUT, their MD5."""
    return body.etag if isinstance(body, StoredBytes) else f'"{hashlib.md5(body).hexdigest()}"'


def multipart_etag(parts: list[bytes]) -> str:
    """The ETag of an object that was uploaded in parts. It is not the MD5 of the object."""
    digests = b"".join(hashlib.md5(part).digest() for part in parts)
    return f'"{hashlib.md5(digests).hexdigest()}-{len(parts)}"'


def checksum_of(body: bytes) -> str:
    """SHA-256 in base64, as S3 writes checksums."""
    return base64.b64encode(hashlib.sha256(body).digest()).decode()
