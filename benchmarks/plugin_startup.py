"""What the pytest plugin adds to the start of a session that has no robustness test.

Imports it in fresh interpreters that have loaded pytest already, and takes the processor time, which other
processes on the machine do not change.

    python benchmarks/plugin_startup.py [REPEATS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys

CODE = """
import time, pytest
import _pytest.config, importlib.metadata, argparse, tempfile
start = time.process_time()
import robust.pytest_plugin
print(time.process_time() - start)
"""


def main() -> None:
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 15
    seconds = []
    for _ in range(repeats):
        done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout))
    print(
        f"import of robust.pytest_plugin, {repeats} fresh interpreters: median processor time "
        f"{1000 * statistics.median(seconds):.1f} ms, largest {1000 * max(seconds):.1f} ms"
    )


if __name__ == "__main__":
    main()
