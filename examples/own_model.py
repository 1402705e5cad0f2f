"""A network of one's own, from Python: trained, made elastic, searched, and one small sub-net exported.

python examples/own_model.py           # about a minute on one CPU core
python examples/own_model.py --smoke   # the same in seconds, with too little training
"""

from __future__ import annotations

import argparse
import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import subnet_search as ss
from subnet_search.data import digits
from subnet_search.measure import top1_percent
from subnet_search.settings import DataSettings


class TwoBranches(nn.Module):
    """Two convolutions side by side, joined, and a block that can be skipped; for 8x8 grey images."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.small = nn.Conv2d(1, 24, kernel_size=1)
        self.large = nn.Conv2d(1, 24, kernel_size=3, padding=1)
        self.norm = nn.BatchNorm2d(48)
        self.down = nn.Conv2d(48, 48, kernel_size=3, stride=2, padding=1)
        self.block = nn.Sequential(nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 48, kernel_size=3, padding=1))
        self.classifier = nn.Linear(48, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Images `[B, 1, 8, 8]` to logits `[B, num_classes]`."""
        x = torch.cat([self.small(x), self.large(x)], dim=1)
        x = self.down(self.norm(x).relu())
        x = x + self.block(x)
        logits: Tensor = self.classifier(x.relu().mean(dim=(2, 3)))
        return logits


def train_plainly(net: nn.Module, batches: ss.Splits, epochs: int) -> None:
    """Any training will do: this stands for the network that you have already."""
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(epochs):
        for images, labels in batches.train:
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
            optimizer.step()


def main() -> None:
    """The whole road; prints what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--smoke", action="store_true", help="train far too little, to see that everything runs"
    )
    epochs, evaluations = (1, 8) if parser.parse_args().smoke else (20, 150)
    torch.manual_seed(0)
    splits = digits(DataSettings(batch_size=64))
    example = torch.zeros(1, 1, 8, 8)
    net = TwoBranches()
    train_plainly(net, splits, epochs)

    supernet = ss.make_elastic(net, example, ss.ElasticSettings(step=4))
    supernet.reorder(ss.rank(supernet, splits.train))  # before training: the best channels come first
    ss.train(supernet, splits, settings=ss.TrainSettings(epochs=epochs, lr=0.05))

    space, costs = supernet.space, supernet.costs
    whole_macs = int(costs.macs(space.encode([space.largest()]))[0])
    evaluator = ss.make_evaluator(supernet, splits, ("top1_percent", "macs"))
    limits = {"macs": whole_macs // 4}
    found = ss.search(space, evaluator, budget=ss.Budget(evaluations), costs=costs, limits=limits)
    best = found.front.members[-1]  # the most accurate one within the limit
    print(f"{space.size} sub-nets; {len(found.evaluations)} looked at, {len(found.front)} on the front")

    small = ss.extract(supernet, best.config, example, evaluator.statistics_of(best.config))
    tuned = ss.finetune(small, splits, ss.FinetuneSettings(epochs=epochs), teacher=supernet)
    with tempfile.TemporaryDirectory() as folder:
        files = [exported.path for exported in ss.export(tuned.net, example, folder)]
    print(f"before fine-tuning {tuned.before:.2f} %, after {tuned.after:.2f} % on search-validation")
    print(f"the whole network: {top1_percent(net, splits.test):.2f} % on test, {whole_macs:,} multiply-adds")
    macs = int(costs.macs(space.encode([best.config]))[0])
    print(f"the sub-net:       {top1_percent(tuned.net, splits.test):.2f} % on test, {macs:,} multiply-adds")
    print("exported:", ", ".join(sorted(str(path) for path in files)))


if __name__ == "__main__":
    main()
