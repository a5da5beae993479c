"""An estimate of the energy that training took: time multiplied by a power that is looked up, not measured."""

from collections.abc import Sequence

from fourfold.study.results import Result

WATTS_PER_THREAD = 10.0  # of a CPU: a server's thermal design power shared by its cores, which lies between 5 and 15
# Board power limits from the makers' data sheets, by what PyTorch calls the device; a busy GPU draws somewhat less.
BOARD_WATTS = (
    ("H200", 700.0),
    ("H100 PCIe", 350.0),
    ("H100", 700.0),
    ("A100-PCIE", 250.0),
    ("A100", 400.0),
    ("L40", 300.0),
    ("L4", 72.0),
    ("A10", 150.0),
    ("V100", 300.0),
    ("T4", 70.0),
    ("P100", 250.0),
    ("RTX 5090", 575.0),
    ("RTX 4090", 450.0),
    ("RTX 3090", 350.0),
)


def watts(run: Result) -> float | None:
    """The power that a run is taken to draw; None where its device, or how many threads it used, is not known."""
    if run.device == "cpu":
        threads = run.config.get("trainer", {}).get("threads")
        return None if threads is None else WATTS_PER_THREAD * threads
    known = (power for name, power in BOARD_WATTS if name in (run.device or ""))
    return next(known, None)


def watt_hours(runs: Sequence[Result]) -> float | None:
    """Of these runs together; None where the power of one is not known."""
    powers = [watts(run) for run in runs]
    if any(power is None for power in powers):
        return None
    return sum(run.seconds / 3600 * (power or 0.0) for run, power in zip(runs, powers, strict=True))
