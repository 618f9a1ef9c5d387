"""A round's report as a page of text, made from its JSON."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

# Participants that the page lists; the JSON has them all.
_LISTED = 100


def render(document: Mapping[str, Any]) -> str:
    """The page. Text that clients choose, such as tensor names in reasons, is shown without control characters."""
    lines = [f"Round {document['round']} of model {document['model']}: {document['status']}"]
    lines += _who(document)
    if document["status"] == "published":
        lines += _published(document)
    else:
        lines.append(f"  reason: {document['error']}")
    # A terminal would obey control characters, and a line break would begin a line that the client has written.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def _who(d: Mapping[str, Any]) -> Iterator[str]:
    norms = d.get("norms") or {}
    for p in d["participants"][:_LISTED]:
        norm = norms.get(p["client"])
        yield f"  client        {p['client']}, {p['num_examples']:,} examples" + (
            "" if norm is None else f", L2 norm {norm:.6g}"
        )
    if len(d["participants"]) > _LISTED:
        yield f"  client        and {len(d['participants']) - _LISTED:,} more (--output json lists all)"
    for e in d.get("excluded", []):
        yield f"  left out      client {e['client']}: {e['reason']}"
    for u in d.get("late_updates", []):
        yield f"  late          client {u['client']}, {u['bytes']:,} bytes"
    for r in d.get("redelivered", []):
        yield f"  failed try    {_job(r)}, delivery {r['receive_count']}: {r.get('error', 'no cause told')}"
    for s in d.get("silent_tries", []):
        yield f"  silent tries  {_job(s)}: {s['tries']} without a result; their log is {s['log_group']}"
    for p in d.get("coordinators", []):
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(p["since"]))
        yield f"  coordinator   {p['host']}, process {p['pid']}, since {since}"


def _job(entry: Mapping[str, Any]) -> str:
    """The job of a try, in words."""
    return (
        f"shard {entry['shard']}" if "shard" in entry else f"aggregator {entry['aggregator']} on level {entry['level']}"
    )


def _published(d: Mapping[str, Any]) -> Iterator[str]:
    total, cost = d["totals"], d["predicted_on_aws"]
    yield from [
        f"  global model  s3://{d['bucket']}/{d['global_model']['key']} ({d['global_model']['size']:,} bytes)",
        f"  clients       {len(d['participants'])} with {d['total_examples']:,} examples",
        f"  topology      {d['topology']}",
        f"  shards        {d['shards']} on {d['lane']['function_name']} ({d['lane']['memory_mb']} MB)",
        f"  seconds       {d['seconds']['total']:.2f}: " + ", ".join(
            f"{name} {value:.2f}" for name, value in d["seconds"].items() if name != "total"
        ),
        f"  functions     {total['wall_s']:.2f} s, {total['cpu_s']:.2f} CPU s, peak {total['peak_rss_mb']:.0f} MB, "
        f"{total['gets']} GETs, {total['puts']} PUTs, {total['retries']} retried reads, {len(d['redelivered'])} "
        "failed tries",
        *(
            f"  level {row['level']}       {row['aggregators']} aggregators, {row['seconds']:.2f} s; partial sums: "
            f"{row['in_shared_memory']} in shared memory, {row['in_s3']} in S3"
            for row in d.get("levels", [])[:-1]
        ),
        f"  on AWS        about {cost['seconds']:.1f} s and ${cost['usd']:.6f} (prediction, all-in)",
    ]  # fmt: skip
    yield from [
        f"  wire          {loss['clients']} clients ({loss['share_of_weight']:.0%} of the weight) sent "
        f"{loss['stored']}: their values are off by at most {loss['relative_error_bound']:.2%} of themselves "
        f"or, where that is more, {loss['absolute_error_bound']:.0e}"
        for loss in d["wire_loss"]
    ]
