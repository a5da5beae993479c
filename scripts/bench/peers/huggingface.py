"""Hugging Face Trainer as its guide to image classification uses it, on a network of our own."""

import numpy as np
import torch
from task import BATCH, MOMENTUM, Clock, Task, drive
from torch import Tensor, nn
from transformers import EvalPrediction, Trainer, TrainingArguments


class Classifier(nn.Module):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task, self.net = task, task.network()

    def train(self, mode: bool = True) -> "Classifier":
        super().train(mode)
        if mode:
            self.task.train_mode(self.net)
        return self

    def forward(self, pixel_values: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.net(pixel_values)
        return {"logits": logits} if labels is None else {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def collate(samples: list[tuple[Tensor, int]]) -> dict[str, Tensor]:
    return {
        "pixel_values": torch.stack([image for image, _ in samples]), "labels": torch.tensor([label for _, label in samples])
    }  # fmt: skip


def accuracy(told: EvalPrediction) -> dict[str, float]:
    return {"accuracy": float((np.argmax(told.predictions, axis=1) == told.label_ids).mean())}


def fit(task: Task, lr: float, clock: Clock) -> float:
    model, train, val = Classifier(task), task.images("train"), task.images("val")
    settings = TrainingArguments(
        output_dir=f"{task.out}/{lr}", remove_unused_columns=False, eval_strategy="epoch", save_strategy="epoch",
        learning_rate=lr, per_device_train_batch_size=BATCH, per_device_eval_batch_size=BATCH, num_train_epochs=task.epochs,
        logging_steps=10, load_best_model_at_end=True, metric_for_best_model="accuracy", report_to="none", use_cpu=True,
        optim="sgd", optim_args=f"momentum={MOMENTUM}", lr_scheduler_type="constant",
    )  # fmt: skip
    with clock.running():
        trainer = Trainer(
            model=model, args=settings, data_collator=collate, train_dataset=train, eval_dataset=val, compute_metrics=accuracy
        )
        trainer.train()
    return float(trainer.state.best_metric)


if __name__ == "__main__":
    drive(fit)
