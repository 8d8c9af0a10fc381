"""Many evaluations from one plan: models x defenses x threats x suites x seeds, resumed by itself."""

from robust.sweep.config import SweepConfig, demonstration, load_config
from robust.sweep.run import SweepResult, run_sweep

__all__ = ["SweepConfig", "SweepResult", "demonstration", "load_config", "run_sweep"]
