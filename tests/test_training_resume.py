"""A run of training that was cut off goes on to the same weights; a checkpoint of another, or a damaged one, is refused."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fitting import OPTIONS, THREAT, assert_same, build_net, clean_loss, some_digits, train

from robust.defenses import EpochResult, Trainer
from robust.errors import InputError


def without_time(history: list[EpochResult]) -> list[EpochResult]:
    return [replace(result, seconds=0.0) for result in history]


class Interrupted(Exception):  # noqa: N818 - stands for Ctrl-C
    pass


def stop_after(epoch: int) -> Callable[[EpochResult], None]:
    def progress(result: EpochResult) -> None:
        if result.epoch == epoch:
            raise Interrupted

    return progress


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path: Path) -> None:
    whole, whole_trainer = train()
    with pytest.raises(Interrupted):
        train(out=tmp_path, progress=stop_after(2))
    seen: list[int] = []
    resumed, trainer = train(out=tmp_path, progress=lambda result: seen.append(result.epoch))
    assert seen == [3, 4]
    assert_same(whole, resumed)
    assert without_time(trainer.history) == without_time(whole_trainer.history)
    finished, _ = train(out=tmp_path, progress=lambda result: seen.append(result.epoch))
    assert seen == [3, 4]
    assert_same(whole, finished)


def test_kill_9_in_the_middle_of_an_epoch_loses_only_that_epoch(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, torch\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "sys.path.insert(0, sys.argv[2])\n"
        "from pathlib import Path\n"
        "from fitting import train\n"
        "calls = []\n"
        "def ticks(done, total):\n"
        "    calls.append(done)\n"
        "    if len(calls) == 2 * total + 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "train(out=Path(sys.argv[1]), ticks=ticks)\n"
    )
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), str(Path(__file__).parent)],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
        capture_output=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    seen: list[int] = []
    resumed, _ = train(out=tmp_path, progress=lambda result: seen.append(result.epoch))
    assert seen == [3, 4]
    assert_same(resumed, train()[0])


def test_a_checkpoint_of_another_run_is_refused_unless_replaced(tmp_path: Path) -> None:
    train(out=tmp_path)
    other = replace(OPTIONS, learning_rate=1e-3)
    with pytest.raises(InputError, match=r"differs in learning_rate; choose another folder"):
        train(other, out=tmp_path)
    replaced, _ = train(other, out=tmp_path, resume=False)
    assert_same(replaced, train(other)[0])
    with pytest.raises(InputError, match="differs in data"):
        Trainer(other, out=tmp_path, validation=some_digits()).fit(
            build_net(), some_digits(200), clean_loss, threat=THREAT, title="clean"
        )


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 truncated", b"\x80\x04cos\nsystem\n"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    train(replace(OPTIONS, epochs=1), out=tmp_path)
    (path,) = tmp_path.glob("checkpoints/*.pt")
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt cannot be read"):
        train(replace(OPTIONS, epochs=1), out=tmp_path)


def test_a_checkpoint_with_altered_numbers_is_damaged(tmp_path: Path) -> None:
    model, _ = train(replace(OPTIONS, epochs=1), out=tmp_path)
    (path,) = tmp_path.glob("checkpoints/*.pt")
    content, bias = path.read_bytes(), next(iter(model.parameters())).detach().numpy().tobytes()
    assert bias in content
    path.write_bytes(content.replace(bias, bytes(len(bias))))
    with pytest.raises(
        InputError, match=r"model\.pt cannot be read \(.* is not what was written\); delete it"
    ):
        train(replace(OPTIONS, epochs=1), out=tmp_path)
