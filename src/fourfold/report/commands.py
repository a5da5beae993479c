"""The command lines that repeat what a table's row shows."""

import shlex

from fourfold.study.cells import Setting


def repeat(setting: Setting) -> list[str]:
    """Commands that run a setting again with all its seeds: one multirun where its runs differ by the seed alone."""
    runs = [list(run.overrides) for run in setting.runs]
    without_seed = [[word for word in words if not word.startswith("seed=")] for words in runs]
    if len(runs) > 1 and all(words == without_seed[0] for words in without_seed):
        return [_line(["-m", *without_seed[0], f"seed={','.join(str(seed) for seed in setting.seeds)}"])]
    return [_line(words) for words in runs]


def _line(words: list[str]) -> str:
    return f"fourfold {shlex.join(words)}".rstrip()
