"""fastai: ImageDataLoaders.from_folder, Learner, fit; batch norm of frozen layers learns, as is its custom."""

from functools import partial

from fastai.data.transforms import Normalize
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.metrics import accuracy
from fastai.optimizer import SGD
from fastai.vision.augment import Flip, RandomCrop, Resize
from fastai.vision.data import ImageDataLoaders
from task import BATCH, MEAN, MOMENTUM, STD, Clock, Task, drive
from torch import nn


def parts(task: Task, net: nn.Module) -> list[list[nn.Parameter]]:
    """Frozen and learning parameters, as `Learner.freeze` wants them."""
    names = [name for name, _ in net.named_parameters()]
    learning = {name for name in names if not task.learns or any(name.startswith(f"{each}.") for each in task.learns)}
    groups = [[p for name, p in net.named_parameters() if (name in learning) == wanted] for wanted in (False, True)]
    return [group for group in groups if group]


def fit(task: Task, lr: float, clock: Clock) -> float:
    net = task.network()
    sizes = [Resize(task.size + task.size // 4), RandomCrop(task.size)] if task.augment else [Resize(task.size)]
    varied = [Flip()] if task.augment else []
    batch = [*varied, Normalize.from_stats(MEAN, STD)]
    with clock.running():
        data = ImageDataLoaders.from_folder(
            task.root, train="train", valid="val", item_tfms=sizes, batch_tfms=batch, bs=BATCH, num_workers=0, device="cpu"
        )
        learner = Learner(
            data, net, loss_func=CrossEntropyLossFlat(), opt_func=partial(SGD, mom=MOMENTUM), metrics=accuracy,
            splitter=partial(parts, task), path=task.out,
        )  # fmt: skip
        if task.learns:
            learner.freeze()
        learner.fit(task.epochs, lr)
    return max(float(row[2]) for row in learner.recorder.values)


if __name__ == "__main__":
    drive(fit)
