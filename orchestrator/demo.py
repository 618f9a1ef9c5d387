"""`make demo`: federated training of a real network on a real data set, over the embedded AWS, end to end.

Eight clients with unequal shares of scikit-learn's handwritten digits train a PyTorch network with BatchNorm. Every
round is run as a user runs it: push, start-round, pull. The last global model is compared byte by byte with a float64
FedAvg of the same updates, which this process computes and writes with the safetensors library.
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

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn

from lambdas.protocol.errors import FederationError
from orchestrator.aws.clients import AwsClients, connect
from orchestrator.aws.deployment import Deployment
from orchestrator.client.api import Client
from orchestrator.client.fetch import fetch
from orchestrator.deployment import function_zip, terraform
from orchestrator.deployment.load import load_deployment
from orchestrator.emulators import emulator
from orchestrator.paths import ROOT
from orchestrator.planning.chart import load_pyplot
from orchestrator.progress import Narration, StderrNarration, elapsed_time
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
    """A small convolutional network with BatchNorm and 22 MB of weights: four shards can be parts of an upload."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.Flatten(), nn.Linear(2048, 2700), nn.BatchNorm1d(2700), nn.ReLU(), nn.Linear(2700, 10),
    )  # fmt: skip


def split_data() -> tuple[list[Data], Data]:
    """Split the data set: unequal shares of the training images, one per client, and a fifth as test images."""
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
    """Train in place with SGD for a client's local epochs."""
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
    """The share of images that the network classifies correctly, 0 to 1."""
    network.eval()
    with torch.no_grad():
        return float((network(data.images).argmax(1) == data.digits).float().mean())


def reference_average(updates: Mapping[str, tuple[StateDict, int]]) -> bytes:
    """FedAvg in float64, clients in ascending id; returns the file that the safetensors library writes."""
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
    """Start an emulator and apply the local environment to it; stop the emulator afterwards.

    The emulator has a temporary home, so that an emulator of the user is not affected.
    """
    with tempfile.TemporaryDirectory(prefix="fedagg-demo-") as home:
        os.environ["FEDAGG_HOME"] = home
        os.environ.pop("AWS_ENDPOINT_URL", None)
        try:
            yield _deploy(emulator.start(narration=narration), narration)
        finally:
            emulator.stop()


def _deploy(running: emulator.Emulator, narration: Narration) -> Deployment:
    narration.say("Building the function zip ...")
    zipped = function_zip.variables(function_zip.target_for("local", running.kind))
    narration.say(f"The embedded AWS listens on {running.url}. terraform apply in environments/local ...")
    variables = {**zipped, "aws_endpoint_url": running.url, "clients": CLIENTS, "shard_counts": [SHARDS]}
    began = time.monotonic()
    with elapsed_time(narration, "terraform apply"):
        terraform.apply("local", variables, show=False)
    deployment = load_deployment("local")
    narration.say(f"Applied in {time.monotonic() - began:.0f} s: s3://{deployment.bucket}, lane for {SHARDS} shards.")
    return deployment


class Federation:
    """The clients of the demo, each with a share of the data, and the network that they train in turn.

    Attributes:
        updates: of the last round, by client id: state_dict and number of examples.
        accuracies: on the test images, before the first round and after each round.
        published: the number of published rounds.
    """

    def __init__(self, deployment: Deployment, shares: list[Data], test: Data, network: nn.Module) -> None:
        self.deployment = deployment
        self.clients = [Client(f"client-{i}", model=MODEL, deployment=deployment) for i in range(len(shares))]
        self.shares = shares
        self.test = test
        self.network = network
        self.updates: dict[str, tuple[StateDict, int]] = {}
        self.accuracies = [accuracy(network, test)]
        self.published = 0

    def run_round(self, number: int, aws: AwsClients, narration: Narration) -> None:
        """Train, push, average, pull, and print a line of the table."""
        round_id = f"r-{number}"
        self._train_and_push(number, round_id, narration)
        request = RoundRequest(MODEL, round_id, shards=SHARDS, min_clients=len(self.clients))
        report = start_round(aws, self.deployment, request, narration).document
        self.published += report["status"] == "published"
        self.network.load_state_dict(self.clients[0].pull(round_id=round_id))
        self.accuracies.append(accuracy(self.network, self.test))
        print(
            f"{number:>5}  {self.accuracies[-1]:>8.3f}  {len(report['participants']):>12}  {report['shards']:>6}  "
            f"{report['seconds']['total']:>7.2f}  ${report['predicted_on_aws']['usd']:.6f}",
            flush=True,
        )

    def _train_and_push(self, number: int, round_id: str, narration: Narration) -> None:
        global_weights = _copy(self.network.state_dict())
        self.updates = {}
        with narration.bar(f"round {number}: clients train and push", len(self.clients)) as progress:
            for index, (client, share) in enumerate(zip(self.clients, self.shares, strict=True)):
                self.network.load_state_dict(global_weights)
                train(self.network, share, seed=1000 * number + index)
                weights = _copy(self.network.state_dict())
                client.push(weights, num_examples=len(share.digits), round_id=round_id)
                self.updates[client.client_id] = (weights, len(share.digits))
                progress(1)


def _copy(state_dict: Mapping[str, torch.Tensor]) -> StateDict:
    return {name: tensor.clone() for name, tensor in state_dict.items()}


def run(narration: Narration) -> bool:
    """Run the demo.

    Returns:
        Whether every round was published, the accuracy rose and the last global model equals the reference.
    """
    OUTPUT.mkdir(exist_ok=True)
    shares, test = split_data()
    network = make_network()
    parameters = sum(t.numel() for t in network.state_dict().values())
    narration.say(
        f"{CLIENTS} clients with {', '.join(str(len(s.digits)) for s in shares)} images; {parameters:,} values."
    )
    path = OUTPUT / "global.safetensors"
    with deployed(narration) as deployment:
        aws = connect(deployment.region, deployment.endpoint_url)
        federation = Federation(deployment, shares, test, network)
        print("round  accuracy  participants  shards  seconds  on AWS (predicted, all-in)", flush=True)
        for number in range(1, ROUNDS + 1):
            federation.run_round(number, aws, narration)
        fetch(aws.bucket(deployment.bucket), MODEL, path)
    model, reference = path.read_bytes(), reference_average(federation.updates)
    identical = model == reference
    if not identical:
        found, expected = (hashlib.sha256(data).hexdigest() for data in (model, reference))
        narration.say(f"The global model has sha256 {found}, the reference {expected}.")
    accuracies = federation.accuracies
    _plot(accuracies, OUTPUT / "accuracy.png")
    narration.say(f"Global model and accuracy plot: {os.path.relpath(OUTPUT)}/")
    print(
        f"demo: {federation.published} rounds published, accuracy {accuracies[0]:.2f} -> {accuracies[-1]:.2f}, "
        f"bit-identical to the reference: {'yes' if identical else 'NO'}"
    )
    return federation.published == ROUNDS and identical and accuracies[-1] > accuracies[0]


def _plot(accuracies: list[float], path: Path) -> None:
    figure, axes = load_pyplot().subplots(figsize=(6, 4))
    axes.plot(range(len(accuracies)), accuracies, marker="o")
    axes.set(xlabel="round", ylabel="test accuracy", ylim=(0, 1), title="scikit-learn digits, 8 clients, 4 shards")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> int:
    """Run the demo; the exit status is 0 if every round was published, the accuracy rose and the bytes are equal."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return 0 if run(StderrNarration()) else 1
    except KeyboardInterrupt:
        print("\ndemo: stopped. The emulator is stopped, too.", file=sys.stderr)
        return 130
    except FederationError as error:
        print(f"demo: failed: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
