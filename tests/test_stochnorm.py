"""StochNorm against batch norm: the same layer in evaluation, and one of two of its answers for each channel in training."""

import copy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from fourfold import models
from fourfold.compose import compose
from fourfold.config import ConfigError
from fourfold.models.stochnorm import StochNorm
from fourfold.run import run

IMAGES = 2 + 3 * torch.randn(8, 64, 4, 4, generator=torch.Generator().manual_seed(0))


def layers() -> tuple[nn.BatchNorm2d, StochNorm]:
    generator = torch.Generator().manual_seed(1)
    plain = nn.BatchNorm2d(64)
    for tensor in (plain.weight, plain.bias, plain.running_mean, plain.running_var):
        assert tensor is not None
        tensor.data = 0.5 + torch.rand(64, generator=generator)
    stochastic = StochNorm(64)
    stochastic.load_state_dict(plain.state_dict())
    return plain, stochastic


def test_each_channel_is_normalised_by_the_batch_or_by_what_was_stored() -> None:
    plain, stochastic = layers()
    torch.manual_seed(0)
    answer = stochastic.train()(IMAGES)
    stored = plain.eval()(IMAGES)
    batch = plain.train()(IMAGES)
    from_batch = [torch.allclose(answer[:, c], batch[:, c], atol=1e-6) for c in range(64)]
    from_stored = [torch.allclose(answer[:, c], stored[:, c], atol=1e-6) for c in range(64)]
    assert all(a != b for a, b in zip(from_batch, from_stored, strict=True))
    assert 20 < sum(from_batch) < 44  # of 64 fair coins: 3 standard deviations
    assert not torch.equal(stochastic(IMAGES), answer)  # drawn anew
    assert stochastic.num_batches_tracked == 2


def test_statistics_and_evaluation_are_those_of_batch_norm() -> None:
    plain, stochastic = layers()
    plain.train()(IMAGES)
    stochastic.train()(IMAGES)
    for name, value in plain.state_dict().items():
        assert torch.equal(stochastic.state_dict()[name], value), name
    assert torch.equal(plain.eval()(IMAGES), stochastic.eval()(IMAGES))


def test_every_batch_norm_is_replaced_and_the_state_dict_stays() -> None:
    config = compose(["model=micro_resnet", "freeze=stochnorm"])
    config.model.weights = None
    plain = models.create(config.model, 5)
    expected = copy.deepcopy(plain.net.state_dict())
    net = models.adapt(plain, config.freeze_strategy).net
    assert not [module for module in net.modules() if type(module) is nn.BatchNorm2d]
    assert len([module for module in net.modules() if isinstance(module, StochNorm)]) == 9
    assert list(net.state_dict()) == list(expected)
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())


def test_a_network_without_batch_norm_is_refused() -> None:
    config = compose(["model=timm", "model.name=test_vit", "model.weights=null", "freeze=full"])
    strategy = replace(config.freeze_strategy, norm_stats="stochastic")
    with pytest.raises(ConfigError, match=r"norm_stats=stochastic replaces batch norm, but .* has none"):
        models.adapt(models.create(config.model, 5), strategy)


def test_a_run_goes_on_bit_for_bit_and_differs_from_full_fine_tuning(tmp_path: Path) -> None:
    from fourfold.trial import Pruned
    from test_run import Ends, config, record, same

    ours = config("freeze=stochnorm")
    result = run(ours, tmp_path / "straight")
    with pytest.raises(Pruned):
        run(ours, tmp_path / "resumed", trial=Ends(1))
    run(ours, tmp_path / "resumed")
    for resumed, straight in zip(record(tmp_path / "resumed"), record(tmp_path / "straight"), strict=True):
        assert same(resumed, straight)
    plain = run(config("freeze=full"), tmp_path / "plain")
    assert result["metrics"]["train"]["loss"] != plain["metrics"]["train"]["loss"]
