"""The loop of PyTorch's own tutorials: ImageFolder, DataLoader, fp32; validation after every epoch."""

import torch
from task import MOMENTUM, Clock, Task, drive
from torch import nn
from torch.utils.data import DataLoader


def accuracy(net: nn.Module, loader: DataLoader) -> float:
    net.eval()
    with torch.no_grad():
        hits = [(net(images).argmax(1) == labels).float() for images, labels in loader]
    return float(torch.cat(hits).mean())


def fit(task: Task, lr: float, clock: Clock) -> float:
    net, train, val = task.network(), task.loader("train"), task.loader("val")
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=lr, momentum=MOMENTUM)
    best = 0.0
    with clock.running():
        for _ in range(task.epochs):
            task.train_mode(net)
            for images, labels in train:
                loss = nn.functional.cross_entropy(net(images), labels)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            best = max(best, accuracy(net, val))
    return best


if __name__ == "__main__":
    drive(fit)
