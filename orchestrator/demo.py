"""`make demo`: federated training of a real network on a real data set, over the embedded AWS, end to end.

Eight clients with unequal shares of scikit-learn's handwritten digits train a PyTorch network with BatchNorm. Every
round takes a user's path: push, start-round, pull. The last global model is compared, byte by byte, with a plain
float64 FedAvg of the same updates in this process, written with the safetensors library.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from lambdas.protocol.errors import FederationError
from orchestrator.aws.clients import connect
from orchestrator.aws.deployment import Deployment
from orchestrator.client.api import Client
from orchestrator.client.fetch import fetch
from orchestrator.deployment import function_zip, terraform
from orchestrator.deployment.load import load_deployment
from orchestrator.emulators import emulator
from orchestrator.paths import ROOT
from orchestrator.progress import Narration, StderrNarration, still_at_it
from orchestrator.rounds.request import RoundRequest
from orchestrator.rounds.start import start_round

MODEL = "digits"
CLIENTS = 8
ROUNDS = 5
SHARDS = 4
OUTPUT = ROOT / "demo-output"

_EPOCHS, _BATCH, _LEARNING_RATE = 2, 32, 0.01

StateDict = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Data:
    """Images, float32 (n, 1, 8, 8), and digits, int64 (n,)."""

    images: torch.Tensor
    digits: torch.Tensor


def make_network() -> nn.Module:
    """A small convolutional network with BatchNorm; 22 MB of weights, so that four shards are parts of one upload."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(2048, 2700), nn.BatchNorm1d(2700), nn.ReLU(), nn.Linear(2700, 10),
    )  # fmt: skip


def split_data() -> tuple[list[Data], Data]:
    """Unequal shares of the training images for the clients, and the test images (a fifth)."""
    digits = load_digits()
    rng = np.random.default_rng(7)
    order = rng.permutation(len(digits.target))
    images = torch.tensor(digits.images[order] / 16.0, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target[order])
    held_out = len(order) // 5
    shares = 0.04 + rng.dirichlet([1.5] * CLIENTS) * (1 - 0.04 * CLIENTS)
    cuts = held_out + np.floor(np.cumsum(shares)[:-1] * (len(order) - held_out)).astype(int)
    bounds = [held_out, *cuts.tolist(), len(order)]
    clients = [Data(images[a:b], labels[a:b]) for a, b in itertools.pairwise(bounds)]
    return clients, Data(images[:held_out], labels[:held_out])


def train(network: nn.Module, data: Data, seed: int) -> None:
    """One client's local epochs of SGD."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(network.parameters(), lr=_LEARNING_RATE, momentum=0.9)
    network.train()
    for _ in range(_EPOCHS):
        order = torch.randperm(len(data.digits), generator=generator)
        for batch in torch.split(order, _BATCH):
            if len(batch) < 2:  # BatchNorm needs more than one example
                continue
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(network(data.images[batch]), data.digits[batch]))
            optimizer.step()


def accuracy(network: nn.Module, data: Data) -> float:
    """Share of digits that the network names correctly."""
    network.eval()
    with torch.no_grad():
        return float((network(data.images).argmax(1) == data.digits).float().mean())


def reference_average(updates: Mapping[str, tuple[StateDict, int]]) -> bytes:
    """FedAvg in one process, float64, clients in ascending id; the bytes of the safetensors library's file."""
    from safetensors.torch import save

    total = sum(count for _, count in updates.values())
    first = next(iter(updates.values()))[0]
    averaged = {}
    for name, tensor in first.items():
        sums = np.zeros(tuple(tensor.shape), dtype=np.float64)
        for client in sorted(updates):
            state_dict, count = updates[client]
            sums += float(count) * state_dict[name].to(torch.float64).numpy()
        mean = sums / total
        averaged[name] = torch.from_numpy(np.asarray(mean if tensor.is_floating_point() else np.rint(mean))).to(
            tensor.dtype
        )
    result: bytes = save(averaged, metadata={"format": "pt"})
    return result


@contextmanager
def deployed(narration: Narration) -> Iterator[Deployment]:
    """An emulator of the demo's own with the local environment applied to it; gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fedagg-demo-") as home:
        os.environ["FEDAGG_HOME"] = home
        os.environ.pop("AWS_ENDPOINT_URL", None)  # what others run is left alone
        try:
            running = emulator.start(narration=narration)
            narration.say("Building the function zip ...")
            zipped = function_zip.variables(function_zip.target_for("local", running.kind))
            narration.say(f"The embedded AWS listens on {running.url}. terraform apply in environments/local ...")
            began = time.monotonic()
            with still_at_it(narration, "terraform apply"):
                terraform.apply(
                    "local",
                    {
                        **zipped,
                        "aws_endpoint_url": running.url,
                        "clients": CLIENTS,
                        "shard_counts": [SHARDS],
                    },
                    show=False,
                )
            deployment = load_deployment("local")
            narration.say(
                f"Applied in {time.monotonic() - began:.0f} s: s3://{deployment.bucket}, lane for {SHARDS} shards."
            )
            yield deployment
        finally:
            emulator.stop()


def run(narration: Narration) -> bool:
    """The demo; whether everything came out as promised."""
    OUTPUT.mkdir(exist_ok=True)
    shares, test = split_data()
    network = make_network()
    accuracies = [accuracy(network, test)]
    parameters = sum(t.numel() for t in network.state_dict().values())
    narration.say(
        f"{CLIENTS} clients with {', '.join(str(len(s.digits)) for s in shares)} images; {parameters:,} values."
    )
    with deployed(narration) as deployment:
        aws = connect(deployment.region, deployment.endpoint_url)
        federation = [Client(f"client-{i}", model=MODEL, deployment=deployment) for i in range(CLIENTS)]
        print("round  accuracy  participants  shards  seconds  on AWS (predicted, all-in)", flush=True)
        published = 0
        global_weights: StateDict = {k: v.clone() for k, v in network.state_dict().items()}
        updates: dict[str, tuple[StateDict, int]] = {}
        for number in range(1, ROUNDS + 1):
            round_id = f"r-{number}"
            updates = {}
            with narration.bar(f"round {number}: clients train and push", CLIENTS) as progress:
                for index, (client, share) in enumerate(zip(federation, shares, strict=True)):
                    network.load_state_dict(global_weights)
                    train(network, share, seed=1000 * number + index)
                    weights = {k: v.clone() for k, v in network.state_dict().items()}
                    client.push(weights, num_examples=len(share.digits), round_id=round_id)
                    updates[client.client_id] = (weights, len(share.digits))
                    progress(1)
            request = RoundRequest(MODEL, round_id, shards=SHARDS, min_clients=CLIENTS)
            report = start_round(aws, deployment, request, narration).document
            published += report["status"] == "published"
            global_weights = federation[0].pull(round_id=round_id)
            network.load_state_dict(global_weights)
            accuracies.append(accuracy(network, test))
            print(
                f"{number:>5}  {accuracies[-1]:>8.3f}  {len(report['participants']):>12}  {report['shards']:>6}  "
                f"{report['seconds']['total']:>7.2f}  ${report['predicted_on_aws']['usd']:.6f}",
                flush=True,
            )
        path = OUTPUT / "global.safetensors"
        fetched = fetch(aws.bucket(deployment.bucket), MODEL, path)
    reference = reference_average(updates)
    identical = path.read_bytes() == reference
    if not identical:
        narration.say(f"sha256 {fetched.sha256}, reference {hashlib.sha256(reference).hexdigest()}")
    _plot(accuracies, OUTPUT / "accuracy.png")
    narration.say(f"Global model and accuracy plot: {os.path.relpath(OUTPUT)}/")
    print(
        f"demo: {published} rounds published, accuracy {accuracies[0]:.2f} -> {accuracies[-1]:.2f}, "
        f"bit-identical to the reference: {'yes' if identical else 'NO'}"
    )
    return published == ROUNDS and identical and accuracies[-1] > accuracies[0]


def _plot(accuracies: list[float], path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 4))
    axes.plot(range(len(accuracies)), accuracies, marker="o")
    axes.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1), title="scikit-learn digits, 8 clients, 4 shards")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def _terminated(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run the demo; 0 only if every round was published, the accuracy rose and the bytes are the reference's."""
    signal.signal(signal.SIGTERM, _terminated)
    try:
        return 0 if run(StderrNarration()) else 1
    except KeyboardInterrupt:
        print("\ndemo: stopped; the emulator is gone and nothing is left running.", file=sys.stderr)
        return 130
    except FederationError as error:
        print(f"demo: failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
