"""Lightning as lightning-hydra-template configures it: torchmetrics, ModelCheckpoint, EarlyStopping, rich output, csv."""

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichModelSummary, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from task import CLASSES, MOMENTUM, Clock, Task, drive
from torch import nn
from torchmetrics import MaxMetric, MeanMetric
from torchmetrics.classification import Accuracy


class Classifier(LightningModule):
    def __init__(self, task: Task, lr: float) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["task"])
        self.task, self.lr, self.net, self.criterion = task, lr, task.network(), nn.CrossEntropyLoss()
        self.train_acc, self.val_acc = (Accuracy(task="multiclass", num_classes=CLASSES) for _ in range(2))
        self.train_loss, self.val_loss, self.val_acc_best = MeanMetric(), MeanMetric(), MaxMetric()

    def on_train_epoch_start(self) -> None:
        self.task.train_mode(self.net)

    def step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        images, labels = batch
        logits = self.net(images)
        return self.criterion(logits, labels), torch.argmax(logits, dim=1), labels

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss, predictions, labels = self.step(batch)
        self.train_loss(loss)
        self.train_acc(predictions, labels)
        self.log("train/loss", self.train_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.train_acc, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_idx: int) -> None:
        loss, predictions, labels = self.step(batch)
        self.val_loss(loss)
        self.val_acc(predictions, labels)
        self.log("val/loss", self.val_loss, on_step=False, on_epoch=True, prog_bar=True)
        self.log("val/acc", self.val_acc, on_step=False, on_epoch=True, prog_bar=True)

    def on_validation_epoch_end(self) -> None:
        self.val_acc_best(self.val_acc.compute())
        self.log("val/acc_best", self.val_acc_best.compute(), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([p for p in self.net.parameters() if p.requires_grad], lr=self.lr, momentum=MOMENTUM)


def fit(task: Task, lr: float, clock: Clock) -> float:
    model, train, val = Classifier(task, lr), task.loader("train"), task.loader("val")
    callbacks = [
        ModelCheckpoint(dirpath=f"{task.out}/{lr}", monitor="val/acc", mode="max", save_last=True),
        EarlyStopping(monitor="val/acc", patience=100, mode="max"), RichModelSummary(max_depth=-1), RichProgressBar(),
    ]  # fmt: skip
    with clock.running():
        trainer = Trainer(
            accelerator="cpu", devices=1, min_epochs=1, max_epochs=task.epochs, callbacks=callbacks, logger=CSVLogger(task.out)
        )
        trainer.fit(model, train, val)
    return float(model.val_acc_best.compute())


if __name__ == "__main__":
    drive(fit)
