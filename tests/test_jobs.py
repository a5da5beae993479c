"""A job that is a changed copy of another equals the one that Hydra composes."""

import copy
from collections.abc import Iterator

import pytest
from hydra.core.config_loader import ConfigLoader
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from fourfold.compose import hydra_ready
from fourfold.jobs import JobConfig, Jobs, quickly

JOBS = [
    ["freeze=full", "seed=1", "optimizer.lr=0.1", "+hydra.job.env_set.TRIAL='[\"a\", 1]'"],
    ["freeze=full", "seed=2", "optimizer.lr=1e-4", "+hydra.job.env_set.TRIAL='[\"b\", 2]'"],
    ["freeze=full", "seed=0", "seed=1"],  # the last one counts
    ["freeze=full", "seed=1", "seed=0"],
    ["freeze=full", "optimizer=sgd", "optimizer.lr=${seed}"],
    ["freeze=full", "optimizer=sgd", "optimizer.lr=3"],
    ["freeze=last_blocks", "freeze_strategy.blocks=2"],
    ["freeze=last_blocks", "freeze_strategy.blocks=null"],
    ["optimizer.kwargs={fused: true}", "+optimizer.kwargs.amsgrad=false"],
    ["optimizer.kwargs={fused: false}", "+optimizer.kwargs.amsgrad=true"],
    ["optimizer.kwargs.fused=false", "optimizer.kwargs={fused: true}"],
    ["optimizer.kwargs.fused=true", "optimizer.kwargs={fused: false}"],
    ["dataset=digits", "dataset.kwargs.train=20"],
    ["dataset=digits", "dataset.kwargs.train=21"],
]


@pytest.fixture
def loader() -> Iterator[ConfigLoader]:
    with hydra_ready() as hydra:
        yield hydra.config_loader


def master(loader: ConfigLoader) -> DictConfig:
    return loader.load_configuration("config", ["hydra/sweeper=fourfold", "study=s"], RunMode.MULTIRUN)


def test_every_job_is_as_hydra_composes_it(loader: ConfigLoader) -> None:
    jobs, cfg = Jobs(loader), master(loader)
    for overrides in [*JOBS, *reversed(JOBS)]:
        expected, found = (each.load_sweep_config(cfg, overrides) for each in (loader, jobs))
        assert OmegaConf.to_yaml(found) == OmegaConf.to_yaml(expected), overrides
        assert found._metadata.flags == expected._metadata.flags
        assert OmegaConf.get_type(found.optimizer) == OmegaConf.get_type(expected.optimizer)
    assert found.hydra.job.override_dirname


def test_what_was_composed_once_is_not_composed_again_and_nobody_shares_it(loader: ConfigLoader) -> None:
    calls = []

    class Counting:
        def __getattr__(self, name: str) -> object:
            calls.append(name)
            return getattr(loader, name)

    jobs, cfg = Jobs(Counting()), master(loader)  # type: ignore[arg-type]
    first = jobs.load_sweep_config(cfg, ["freeze=full", "seed=1"])
    first.trainer.epochs = 99
    second = jobs.load_sweep_config(cfg, ["freeze=full", "seed=2"])
    assert second.seed == 2
    assert second.trainer.epochs != 99
    jobs.load_sweep_config(cfg, ["freeze=last_blocks", "seed=2"])
    assert calls.count("load_sweep_config") == 2


def test_a_value_that_does_not_fit_is_refused_in_hydras_words(loader: ConfigLoader) -> None:
    jobs, cfg = Jobs(loader), master(loader)
    jobs.load_sweep_config(cfg, ["seed=1"])
    with pytest.raises(ConfigCompositionException, match="seed=one"):
        jobs.load_sweep_config(cfg, ["seed=one"])


def test_a_copy_of_a_job_is_as_omegaconf_makes_it(loader: ConfigLoader) -> None:
    job = Jobs(loader).load_sweep_config(master(loader), ["freeze=full", "seed=1"])
    for node in (job, job.hydra):
        expected = DictConfig.__deepcopy__(node, {})
        assert type(node) is JobConfig
        assert type(expected) is DictConfig
        copied = copy.deepcopy(node)
        assert OmegaConf.to_yaml(copied) == OmegaConf.to_yaml(expected)
        assert copied._metadata == expected._metadata
        assert copied._get_parent() is node._get_parent()  # kept, not copied: `${seed}` in the hydra node still finds it
    copied = copy.deepcopy(job)
    assert copied.hydra._get_parent() is copied
    copied.optimizer.lr = 77.0
    assert job.optimizer.lr != 77.0


def test_what_is_written_quickly_is_the_same_text(loader: ConfigLoader) -> None:
    words = ["freeze=full", "study='Möwe ☂'", "dataset.root='a: # b'"]
    jobs, cfg = Jobs(loader), master(loader)
    some = [jobs.load_sweep_config(cfg, [*words, f"optimizer.lr={rate}"]) for rate in ("0.1", "1e-5")]
    own = [OmegaConf.masked_copy(job, "hydra") for job in some]
    plain = {"a": "yes", "b": "1e-4", "c": "x y " * 90, "d": "two\nlines", "e": [None, 1e-5, "", " ", []], "f": "???", "g": {}}
    more = {"h": plain, "i": True, "j": 1, "k": RunMode.RUN, RunMode.RUN: "${a}", "l": {"m": None, "n": 1.0}, "o": {"p": 1}}
    odd = OmegaConf.create({**plain, **more})
    OmegaConf.update(odd, "o", "${h}")
    few = [OmegaConf.create(each) for each in ({}, {"hydra": {}}, {"hydra": None}, {"a": None, "hydra": 1}, {"hydra": "???"})]
    every = [*some, *own, odd, *few, some[0].hydra.overrides.task]
    expected = [OmegaConf.to_yaml(each) for each in every]
    with quickly():
        for _ in range(2):
            assert [OmegaConf.to_yaml(each) for each in every] == expected
        assert OmegaConf.to_yaml(odd, sort_keys=True) != OmegaConf.to_yaml(odd)
    assert [OmegaConf.to_yaml(each) for each in every] == expected


def test_a_password_of_the_environment_is_in_no_job(loader: ConfigLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Hydra writes a job's configuration into the run's folder."""
    monkeypatch.setenv("STUDY_URL", "postgresql://me:secret@there/studies")
    words = ["hydra/sweeper=fourfold", "study=s", "hydra.sweeper.storage='${oc.env:STUDY_URL}'"]
    jobs, cfg = Jobs(loader), loader.load_configuration("config", words, RunMode.MULTIRUN)
    for overrides in (["seed=1"], ["seed=2"]):  # composed, and copied
        job = jobs.load_sweep_config(cfg, overrides)
        assert "secret" not in OmegaConf.to_yaml(job)
        assert OmegaConf.to_yaml(job) == OmegaConf.to_yaml(loader.load_sweep_config(cfg, overrides))
        assert job.hydra.sweeper.storage == "postgresql://me:secret@there/studies"
