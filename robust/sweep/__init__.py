"""Many evaluations from one plan: models x defenses x threats x suites x seeds, resumed by itself."""

from robust.sweep.config import SweepConfig, demonstration
from robust.sweep.finish import SweepResult
from robust.sweep.reading import load_config
from robust.sweep.run import run_sweep
from robust.sweep.watch import Event, Listener

__all__ = ["Event", "Listener", "SweepConfig", "SweepResult", "demonstration", "load_config", "run_sweep"]
