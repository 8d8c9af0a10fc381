"""What a shard costs the driver of a sweep: bytes on the wire, bytes kept, processor seconds. For docs/cluster.md.

python benchmarks/driver.py [--samples 512] [--repeats 50]

The shard is real (suite `quick` on the built-in MNIST digits, an untrained net). What is timed is reading it from
its pickled form, as an executor hands it over, and keeping it.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from pathlib import Path

from verdict import hardware

from robust.parts import Plan, attack_part
from robust.run import Settings
from robust.sources import load_data, load_model
from robust.suites import resolve
from robust.sweep.results import Results
from robust.target import Target
from robust.threat import Threat


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    threat = Threat("linf", "0.1")
    name, stages = resolve("quick", threat)
    samples = load_data("builtin:mnist5k:test").limit(options.samples)
    target = Target(load_model("builtin:mnist-cnn"), device="cpu")
    part = attack_part(
        target, samples, Plan(threat, name, stages), Settings(micro_batch=128, precision="float32")
    )
    wire = pickle.dumps(part)
    with tempfile.TemporaryDirectory() as folder:
        results = Results(Path(folder))
        start = time.process_time()
        for repeat in range(options.repeats):
            results.keep_part(f"cell{repeat}", pickle.loads(wire))  # noqa: S301 - our own bytes, just made
        seconds = (time.process_time() - start) / options.repeats
        kept = sum(file.stat().st_size for file in (Path(folder) / "parts" / "cell0").iterdir())
    text = "\n".join(
        [
            f"# A shard of {options.samples} samples, and the driver of a sweep",
            "",
            "| on the wire, kB | kept, kB | driver's processor ms |",
            "|---|---|---|",
            f"| {len(wire) / 1e3:.0f} | {kept / 1e3:.0f} | {1e3 * seconds:.1f} |",
            "",
            hardware(),
        ]
    )
    print(text)
    (Path(__file__).parent / "results" / "driver-cpu.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
