"""The same loop on images that lie decoded and normalised in memory: the least that a loop in fp32 can cost.

A training image is padded before, so that its shift is a slice.
"""

import torch
from bare import accuracy
from task import MOMENTUM, Clock, Task, drive
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms import v2


def decoded(task: Task, part: str) -> tuple[Tensor, Tensor]:
    images = task.images(part)
    fixed = [each for each in images.transform.transforms if not isinstance(each, v2.RandomCrop | v2.RandomHorizontalFlip)]
    images.transform = v2.Compose(fixed)
    pixels, labels = zip(*images, strict=True)
    return torch.stack(pixels), torch.tensor(labels)


def fit(task: Task, lr: float, clock: Clock) -> float:
    net, val = task.network(), DataLoader(TensorDataset(*decoded(task, "val")), batch_size=128)
    images, labels = decoded(task, "train")
    shift = task.size // 8 if task.augment else 0
    padded = nn.functional.pad(images, (shift,) * 4, mode="reflect")
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=lr, momentum=MOMENTUM)
    best = 0.0
    with clock.running():
        for _ in range(task.epochs):
            task.train_mode(net)
            for rows in torch.randperm(len(images)).split(32):
                most = (2 * shift + 1, 2 * shift + 1, 2)
                tops, lefts, flips = (torch.randint(0, high, (len(rows),)).tolist() for high in most)
                crops = [
                    padded[row, :, y : y + task.size, x : x + task.size]
                    for row, y, x in zip(rows.tolist(), tops, lefts, strict=True)
                ]
                batch = torch.stack([c.flip(-1) if f and task.augment else c for c, f in zip(crops, flips, strict=True)])
                loss = nn.functional.cross_entropy(net(batch), labels[rows])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            best = max(best, accuracy(net, val))
    return best


if __name__ == "__main__":
    drive(fit)
