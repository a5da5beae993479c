"""The work that every system is given, and what is common to those that are not Fourfold: images, network, clock."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CLASSES, BATCH, MOMENTUM = 10, 32, 0.9


@dataclass(frozen=True)
class Task:
    """One fit for each learning rate, one after the other in one process."""

    root: str  # folder with train/, val/ and test/, each with a folder per class
    out: str  # folder for whatever a system writes
    model: str  # of torchvision
    weights: str | None  # a state dict to start from
    strategy: str  # freeze= of Fourfold
    learns: list[str]  # names of the modules that learn; none: the whole network
    size: int  # pixels
    augment: bool  # shift by up to an eighth with reflected borders, and flip
    epochs: int
    lrs: list[float]

    def images(self, part: str) -> ImageFolder:
        shape = [v2.Resize(self.size, antialias=True), v2.CenterCrop(self.size)]
        vary = [v2.RandomCrop(self.size, padding=self.size // 8, padding_mode="reflect"), v2.RandomHorizontalFlip()]
        ends = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        varied = vary if self.augment and part == "train" else []
        return ImageFolder(f"{self.root}/{part}", v2.Compose([*shape, *varied, *ends]))

    def loader(self, part: str, images: Dataset | None = None) -> DataLoader:
        return DataLoader(images or self.images(part), batch_size=BATCH, shuffle=part == "train")

    def network(self) -> nn.Module:
        """The network with a new head; what does not learn takes no gradient."""
        torch.manual_seed(0)
        net = getattr(torchvision.models, self.model)()
        if self.weights is not None:
            net.load_state_dict(torch.load(self.weights, weights_only=True))
        net.fc = nn.Linear(net.fc.in_features, CLASSES)
        for name, parameter in net.named_parameters():
            parameter.requires_grad = not self.learns or any(name.startswith(f"{each}.") for each in self.learns)
        return net

    def train_mode(self, net: nn.Module) -> None:
        """Train mode, but for the frozen part, whose batch statistics must not move."""
        net.train()
        for name, module in net.named_modules():
            if self.learns and isinstance(module, nn.BatchNorm2d) and not any(name.startswith(f"{e}.") for e in self.learns):
                module.eval()


@dataclass
class Clock:
    """CPU seconds of the fits alone, without imports and without building the network."""

    fit: float = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        begun = time.process_time()
        yield
        self.fit += time.process_time() - begun


def drive(fit: Callable[[Task, float, Clock], float]) -> None:
    """Do the task that the command line gives, by a function that trains once and returns the accuracy; print what it cost."""
    torch.set_num_threads(1)
    task = Task(**json.loads(sys.argv[1]))
    Path(task.out).mkdir(parents=True, exist_ok=True)
    clock = Clock()
    accuracies = [fit(task, lr, clock) for lr in task.lrs]
    print(json.dumps({"fit": clock.fit, "accuracies": accuracies}))
