"""Keras on its torch backend: the network in a TorchModuleWrapper, compile and fit on torch DataLoaders, ModelCheckpoint."""

import os

os.environ["KERAS_BACKEND"] = "torch"

import keras
from task import MOMENTUM, Clock, Task, drive
from torch import nn


class Classifier(keras.Model):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = keras.layers.TorchModuleWrapper(net)

    def call(self, images, training=None):  # type: ignore[no-untyped-def]
        return self.net(images)


def fit(task: Task, lr: float, clock: Clock) -> float:
    net, train, val = task.network(), task.loader("train"), task.loader("val")
    with clock.running():
        model = Classifier(net)
        model.compile(
            optimizer=keras.optimizers.SGD(lr, momentum=MOMENTUM),
            loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        kept = keras.callbacks.ModelCheckpoint(
            f"{task.out}/{lr}.weights.h5", monitor="val_accuracy", save_best_only=True, save_weights_only=True
        )
        told = model.fit(train, validation_data=val, epochs=task.epochs, callbacks=[kept], verbose=2)
    return max(told.history["val_accuracy"])


if __name__ == "__main__":
    drive(fit)
