"""What the training loop makes of its data: batches, shuffles, crops, eight bits, extra samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fitting import OPTIONS, THREAT, assert_same, build_net, clean_loss, some_digits
from torch.nn import functional

from robust.defenses import Trainer
from robust.defenses.data import batches, crop_and_flip, mixed_batches
from robust.errors import DataError
from robust.rng import Streams
from robust.sources import Samples, load_data


def test_epochs_shuffle_differently_and_leave_no_tiny_batch() -> None:
    one, two = (batches(129, 64, seed, torch.device("cpu")) for seed in (1, 2))
    assert [len(part) for part in one] == [43, 43, 43]
    assert sorted(torch.cat(one).tolist()) == list(range(129))
    assert not torch.equal(torch.cat(one), torch.cat(two))


@pytest.mark.parametrize("count", [3, 25, 26])
def test_pairs_of_an_odd_count_leave_no_sample_alone(count: int) -> None:
    parts = mixed_batches(count, 0, 2, 0.7, 0, torch.device("cpu"))
    assert {len(part) for part in parts} <= {2, 3}
    assert torch.cat(parts).sort().values.tolist() == list(range(count))


def test_eight_bit_samples_train_like_their_floats() -> None:
    data = some_digits()
    stored = Samples((data.rows(slice(None)) * 255).round().to(torch.uint8), data.y, data.ids)
    scaled = Samples(stored.rows(slice(None)), data.y, data.ids)
    nets = [
        Trainer(replace(OPTIONS, epochs=1)).fit(build_net(), part, clean_loss, threat=THREAT, title="")
        for part in (stored, scaled)
    ]
    assert_same(*nets)


def test_crops_are_windows_of_the_padded_image() -> None:
    x = torch.rand(40, 2, 8, 8)
    out = crop_and_flip(x, Streams(0, torch.arange(40), ("augment", 1)))
    padded = functional.pad(x, (4, 4, 4, 4))
    flips = 0
    for i in range(40):
        windows = padded[i].unfold(1, 8, 1).unfold(2, 8, 1).permute(1, 2, 0, 3, 4).reshape(-1, 2, 8, 8)
        plain = bool((windows == out[i]).flatten(1).all(1).any())
        flipped = bool((windows.flip(3) == out[i]).flatten(1).all(1).any())
        assert plain or flipped
        flips += flipped
    assert 5 < flips < 35


def test_extra_data_makes_up_its_share_of_every_batch() -> None:
    parts = mixed_batches(100, 30, 50, 0.6, 7, torch.device("cpu"))
    assert [int((part < 100).sum()) for part in parts] == [20] * 5
    assert [int((part >= 100).sum()) for part in parts] == [30] * 5
    own = torch.cat(parts)
    assert sorted(own[own < 100].tolist()) == list(range(100))
    assert set(own[own >= 100].tolist()) == set(range(100, 130))
    extra = load_data("builtin:digits:train").take(slice(500, 900))
    trainer = Trainer(replace(OPTIONS, epochs=6), extra=extra)
    trainer.fit(build_net(), some_digits(60), clean_loss, threat=None, title="")
    assert trainer.history[-1].clean_accuracy > 0.6
    wide = Samples(torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64), torch.arange(4))
    with pytest.raises(DataError, match="extra: expected samples of the training data's shape"):
        Trainer(OPTIONS, extra=wide).fit(build_net(), some_digits(), clean_loss, threat=None, title="")
