"""The result of verifying a round: what was checked, and the links of its SHA-256 chain that are broken."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

_SHOWN = 10


@dataclass(frozen=True)
class BrokenLink:
    """A link of the chain that does not hold.

    Attributes:
        link: `report`, `manifest`, `update`, `shard` or `global model`.
        key: the object in the bucket.
        problem: what is wrong with it, a sentence.
        client, shard: which update or shard, if the link is one.
    """

    link: str
    key: str
    problem: str
    client: str | None = None
    shard: int | None = None

    def __str__(self) -> str:
        which = f" of client {self.client}" if self.client else f" {self.shard}" if self.shard is not None else ""
        return f"{self.link}{which} ({self.key}): {self.problem}"


@dataclass
class Verification:
    """What was checked, what was not, and what is broken.

    Attributes:
        report_sha256, manifest_sha256, global_model_sha256: of the stored objects; None if one was not read completely.
        updates: the number of updates whose header was checked.
        data_sections: the number of updates whose values were read completely and hashed.
        shards: those that were recomputed and compared.
        not_checked: sentences.
    """

    round_id: str
    model: str | None = None
    report_sha256: str | None = None
    manifest_sha256: str | None = None
    global_model_sha256: str | None = None
    updates: int = 0
    data_sections: int = 0
    shards: list[int] = field(default_factory=list)
    not_checked: list[str] = field(default_factory=list)
    broken: list[BrokenLink] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `orchestrator verify --output json` prints."""
        return {"verified": not self.broken, **asdict(self)}

    def to_text(self) -> str:
        """The lines that `orchestrator verify` prints."""
        lines = [
            f"Round {self.round_id} of model {self.model}: "
            + ("verified." if not self.broken else f"{len(self.broken)} links of its chain are broken."),
            *(f"  broken: {link}" for link in self.broken[:_SHOWN]),
        ]
        if len(self.broken) > _SHOWN:
            lines.append(f"  and {len(self.broken) - _SHOWN} more")
        lines += [
            f"  manifest      sha256 {self.manifest_sha256}",
            f"  updates       {self.updates} headers, {self.data_sections} data sections",
            f"  shards        {len(self.shards)} recomputed and compared",
        ]
        if self.global_model_sha256:
            lines.append(f"  global model  sha256 {self.global_model_sha256}")
        return "\n".join([*lines, *(f"  not checked   {sentence}" for sentence in self.not_checked)])
