"""What a sweep keeps in its folder: found again, and made again where it is lost or damaged."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sweeps import Count, ids

from robust.parts import Part
from robust.sources import Samples
from robust.sweep import Event, SweepConfig, SweepResult, run_sweep
from robust.sweep.results import Results
from robust.sweep.tasks import AttackTask, Folder, ModelRef, Worker


def _cut(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:1000])


def _alter(weights: Path) -> None:
    content = bytearray(weights.read_bytes())
    half = len(content) // 2
    content[half : half + 256] = bytes(byte ^ 0x40 for byte in content[half : half + 256])
    weights.write_bytes(content)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(Path.unlink, "no such file"), (_cut, "truncated, damaged"), (_alter, "not those that were trained")],
)
def test_lost_weights_are_trained_again_and_told(
    sweep_config: SweepConfig, tmp_path: Path, harm: Callable[[Path], object], reason: str
) -> None:
    small = sweep_config.model_copy(update={"defenses": sweep_config.defenses[:1]})
    first = run_sweep(small, tmp_path, device="cpu")
    (weights,) = tmp_path.glob("models/*/weights.safetensors")
    whole = weights.read_bytes()
    harm(weights)
    told: list[Event] = []
    second = run_sweep(small, tmp_path, device="cpu", listener=told.append)
    assert [reason in event.fields["reason"] for event in told if event.kind == "lost"] == [True]
    assert (weights.read_bytes(), ids(second)) == (whole, ids(first))
    assert (second.failures, second.missing, second.reused) == ([], [], first.computed)
    third = Count()
    assert run_sweep(small, tmp_path, device="cpu", listener=third).failures == []
    assert third.trained == 0


def test_a_damaged_checkpoint_of_lost_weights_is_told_and_trained_from_the_start(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    small = sweep_config.model_copy(update={"defenses": sweep_config.defenses[:1]})
    first = run_sweep(small, tmp_path, device="cpu")
    for harm in (_cut, _alter):
        (weights,) = tmp_path.glob("models/*/weights.safetensors")
        (checkpoint,) = tmp_path.glob("models/*/checkpoints/*.pt")
        weights.unlink()
        harm(checkpoint)
        told: list[Event] = []
        again = run_sweep(small, tmp_path, device="cpu", listener=told.append)
        lost = [event.fields["reason"] for event in told if event.kind == "lost"]
        assert len(lost) == 2
        assert "no such file" in lost[0]
        assert f"checkpoint {checkpoint} cannot be read (" in lost[1]
        assert (again.failures, again.missing, ids(again)) == ([], [], ids(first))


def test_a_file_where_a_folder_is_to_be_stops_the_sweep_in_one_line(
    sweep_config: SweepConfig, tmp_path: Path
) -> None:
    (tmp_path / "models").touch()
    result = run_sweep(sweep_config, tmp_path, device="cpu")
    assert result.stopped is not None
    assert re.match(
        r"out: cannot write .*: (Not a directory|File exists); move away what is in the way; what was finished is kept",
        result.stopped,
    )
    assert result.failures == []


@pytest.mark.parametrize("kind", ["cells/*.json", "curves/*.parquet", "models/*/weights.safetensors"])
def test_a_folder_where_a_file_is_to_be_is_named_with_what_to_do(tmp_path: Path, kind: str) -> None:
    plan = SweepConfig.model_validate(
        {
            "data": "builtin:digits",
            "train": "builtin:digits",
            "limit": 4,
            "models": [{"spec": "builtin:digits-mlp"}],
            "defenses": [{"name": "none", "training": {"epochs": 1}}],
            "threats": ["linf:0.05"],
            "suites": [["fgsm"]],
            "curves": [{"norm": "linf", "eps": ["0.02", "0.05"], "suite": ["fgsm"]}],
        }
    )
    run_sweep(plan, tmp_path, device="cpu")
    (file,) = tmp_path.glob(kind)
    file.unlink()
    file.mkdir()
    result = run_sweep(plan, tmp_path, device="cpu")
    assert result.stopped == (
        f"out: cannot write {file}: Is a directory; move away what is in the way; what was finished is kept"
    )


def test_a_damaged_shard_is_computed_again(
    sweep_config: SweepConfig, tmp_path: Path, swept: tuple[Path, SweepResult]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_sweep(sweep_config, tmp_path, device="cpu", listener=Count(stop_at=2))
    shards = sorted((tmp_path / "parts").rglob("*.parquet"))
    assert len(shards) == 2
    shards[0].write_bytes(shards[0].read_bytes()[:-40])
    rest = Count()
    assert ids(run_sweep(sweep_config, tmp_path, device="cpu", listener=rest)) == ids(swept[1])
    assert rest.shards == 12 - 1


def test_shards_survive_their_file(tmp_path: Path, sweep_config: SweepConfig) -> None:
    from robust.sweep.held import hold

    held = hold("builtin:digits", 12, tmp_path / "data")
    task = AttackTask(
        "1", "cell", ModelRef("builtin:digits-mlp"), str(held.folder), "l2:2", "quick", 0, True, (0, 5), 8, "float32",
        show=(1, 2, 3),
    )  # fmt: skip
    outcome = Worker(Folder(), "cpu").do(task, lambda progress: None)
    part, results = outcome.result, Results(tmp_path)
    assert isinstance(part, Part)
    results.keep_part("key", part, outcome.examples)
    kept = results.part("key", (0, 5))
    assert kept is not None
    read, examples = kept
    assert isinstance(read, Part)
    assert examples == outcome.examples is not None
    pd.testing.assert_frame_equal(read.verdicts, part.verdicts, check_exact=True)
    rest = [{k: v for k, v in vars(p).items() if k != "verdicts"} for p in (read, part)]
    assert rest[0] == rest[1]
    (tmp_path / "parts" / "key" / "0-5.safetensors").write_bytes(examples[:-1])
    assert results.part("key", (0, 5)) is None


def test_decoded_data_are_found_again_until_the_file_changes(tmp_path: Path) -> None:
    from robust.sweep.held import hold

    x = torch.randint(0, 256, (20, 3, 4, 4), dtype=torch.uint8)
    frame = tmp_path / "data.npz"
    np.savez(frame, x=x.numpy(), y=np.arange(20) % 4)
    first, again = (hold(str(frame), 7, tmp_path / "held") for _ in range(2))
    assert first == again
    assert torch.equal(first.samples.x, x[first.samples.ids])
    assert (len(first.samples), first.sha256) == (7, first.samples.sha256)
    np.savez(frame, x=255 - x.numpy(), y=np.arange(20) % 4)
    os.utime(frame, ns=(1, 1))
    assert hold(str(frame), 7, tmp_path / "held").sha256 != first.sha256


def test_samples_that_another_sweep_has_decoded_meanwhile_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one reads them already."""
    from robust.sweep import held

    np.savez(tmp_path / "data.npz", x=np.zeros((20, 1, 4, 4), np.uint8), y=np.arange(20) % 4)
    load, theirs = held.load_data, []

    def overtaken(*arguments: Any, **options: Any) -> Samples:
        samples = load(*arguments, **options)
        if not theirs:
            theirs.append(None)
            theirs[0] = held.hold(str(tmp_path / "data.npz"), None, tmp_path / "held")
            theirs.append((theirs[0].folder / "x.npy").stat().st_ino)
        return samples

    monkeypatch.setattr(held, "load_data", overtaken)
    ours = held.hold(str(tmp_path / "data.npz"), None, tmp_path / "held")
    assert [ours, (ours.folder / "x.npy").stat().st_ino] == theirs
    assert [path.name for path in (tmp_path / "held").iterdir()] == [ours.folder.name]


def test_a_folder_that_another_sweep_drops_while_a_shard_is_kept_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results, write = Results(tmp_path), Path.write_bytes

    def dropped(path: Path, content: bytes) -> int:
        monkeypatch.setattr(Path, "write_bytes", write)
        results.drop_parts("key")
        return path.write_bytes(content)

    monkeypatch.setattr(Path, "write_bytes", dropped)
    results.write(tmp_path / "parts" / "key" / "0-5.parquet", b"shard")
    assert (tmp_path / "parts" / "key" / "0-5.parquet").read_bytes() == b"shard"


def _anew(harm: Callable[[Path], object]) -> Callable[[Path], None]:
    """Harm as a copy in the file's place: this process has the file itself mapped into memory."""

    def harm_copy(path: Path) -> None:
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content)
        harm(path)

    return harm_copy


@pytest.mark.parametrize("name", ["x.npy", "ids.npy", "groups.npy", "index.json"])
@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (Path.unlink, "no such file"),
        (_anew(lambda path: path.write_bytes(path.read_bytes()[:-1])), "not what was written|cannot be read"),
        (_anew(_alter), "not what was written|cannot be read"),
    ],
    ids=["gone", "cut", "altered"],
)
def test_damaged_samples_are_told_and_decoded_again(
    tmp_path: Path, name: str, harm: Callable[[Path], object], reason: str
) -> None:
    x = torch.randint(0, 256, (20, 1, 8, 8), dtype=torch.uint8).numpy()
    source = tmp_path / "data.npz"
    np.savez(source, x=x, y=np.arange(20) % 10, groups=np.arange(20) % 2)
    plan = SweepConfig.model_validate(
        {
            "data": str(source),
            "threats": ["linf:0.05"],
            "suites": ["fgsm"],
            "models": [{"spec": "builtin:digits-mlp"}],
        }
    )
    first = run_sweep(plan, tmp_path / "out", device="cpu")
    (file,) = tmp_path.glob(f"out/data/*/{name}")
    whole = file.read_bytes()
    harm(file)
    told: list[Event] = []
    again = run_sweep(plan, tmp_path / "out", device="cpu", listener=told.append)
    lost = [event for event in told if event.kind == "lost"]
    assert (again.failures, ids(again), file.read_bytes()) == ([], ids(first), whole)
    if (name, reason) == ("index.json", "no such file"):
        assert lost == []  # as if nothing had been decoded yet
        return
    assert [(event.title, event.fields["what"]) for event in lost] == [(str(source), "data")]
    assert re.search(rf"{name}: ({reason})", lost[0].fields["reason"])


def test_a_full_disk_is_told_once_and_nothing_is_lost(
    sweep_config: SweepConfig, tmp_path: Path, swept: tuple[Path, SweepResult]
) -> None:
    """The system's limit on the size of a file stands in for the disk: the write itself fails."""
    small = sweep_config.model_copy(update={"defenses": sweep_config.defenses[:1]})
    run = Count()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    first = run_sweep(small, tmp_path, device="cpu", listener=Full(at_shard=4))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert first.stopped is not None
    assert first.stopped.count("File too large") == 1
    assert "what was finished is kept" in first.stopped
    assert (first.computed, first.failures, len(first.missing)) == (1, [], 1)
    second = run_sweep(small, tmp_path, device="cpu", listener=run)
    assert (second.computed, second.reused, second.missing, run.trained) == (1, 1, [], 0)
    assert set(ids(second)) < set(ids(swept[1]))


class Full:
    """Leaves no room for further files after some shards."""

    def __init__(self, at_shard: int) -> None:
        self.left = at_shard

    def __call__(self, event: Event) -> None:
        self.left -= event.kind == "shard"
        if event.kind == "shard" and self.left == 0:
            _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10, hard))
