"""What a model declares in front of itself, input size and normalisation, counts in every command."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import robust
from robust.bpda import BPDA
from robust.defenses import make_defense
from robust.eot import EOT
from robust.errors import InputError
from robust.in_front import bare
from robust.leaderboard import Record, Store, verify
from robust.sources import Preprocessing, load_data, load_weights, model_sha256
from robust.sweep import load_config, run_sweep
from robust.sweep.held import hold
from robust.sweep.tasks import ModelRef, build_target
from robust.target import Target
from robust.transforms import BitDepth, Median

MOMENTS = ((0.3,), (0.35,))


def test_a_target_as_a_module_computes_the_same(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    x = nn.functional.interpolate(digits[0], size=(20, 20))
    target = Target(net, normalize=MOMENTS, size=(8, 8), device="cpu")
    module = target.as_module().eval()
    with target, torch.no_grad():
        assert torch.equal(module(x), target.logits(x))
        assert not torch.equal(module(x), net(nn.functional.interpolate(x, size=(8, 8))))
    assert bare(module) is net
    assert Target(net, device="cpu").as_module() is net
    with pytest.raises(InputError, match="EOT"):
        EOT(net, 2, device="cpu").as_module()


def test_bpda_keeps_the_input_size(net: nn.Module, digits: tuple[Tensor, Tensor]) -> None:
    """The transform sees the image as it is; scaling and normalisation come after it."""
    x = nn.functional.interpolate(digits[0], size=(20, 20), mode="bilinear").clamp(0, 1)
    inner = Target(net, normalize=MOMENTS, size=(8, 8), device="cpu")
    with BPDA(BitDepth(1), inner) as target, inner, torch.no_grad():
        assert torch.equal(target.logits(x), inner.logits(x.round()))
    report = robust.evaluate(BPDA(BitDepth(1), inner), (x, digits[1]), threat="linf:0.3", suite=["fgsm"])
    assert report.statuses["error"] == 0


def test_hardening_trains_and_judges_behind_it(net: nn.Module, tmp_path: Path) -> None:
    """Weights for the bare model; reports and records with the normalisation; one figure whichever way it is asked."""
    train, test = load_data("builtin:digits:train").limit(300), load_data("builtin:digits").limit(60)
    seen: list[Tensor] = []

    class Spy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            seen.append(x.detach())
            out: Tensor = self.net(x)
            return out

    target = Target(Spy(), normalize=MOMENTS, device="cpu")
    before = model_sha256(target.model)
    hardened = robust.harden(
        target, train, defense={"name": "pgd-at", "steps": 1}, threat="linf:0.1", validation=test, out=tmp_path,
        training={"epochs": 1}, suite=["fgsm"], device="cpu",
    )  # fmt: skip
    assert isinstance(hardened.model, Spy)
    assert all(float(x.min()) >= (0 - 0.3) / 0.35 - 1e-5 for x in seen)
    assert min(float(x.min()) for x in seen) < -0.5, "the model never saw normalised images"
    assert model_sha256(target.model) == before
    assert hardened.report is not None
    assert hardened.report.model["normalize"] == [[pytest.approx(0.3)], [pytest.approx(0.35)]]
    again = robust.evaluate(
        hardened.model, test, normalize=MOMENTS, threat="linf:0.1", suite=["fgsm"], device="cpu"
    )
    assert again.verdicts["status"].tolist() == hardened.report.verdicts["status"].tolist()
    for name in ("weights", "last"):
        loaded = Spy()
        load_weights(loaded, tmp_path / f"{name}.safetensors")
    assert {record.model.normalize is not None for record in Store(tmp_path).records()} == {True}


def test_a_defense_that_wraps_keeps_it_behind_its_transform(
    net: nn.Module, digits: tuple[Tensor, Tensor]
) -> None:
    train = load_data("builtin:digits:train").limit(100)
    target = Target(net, normalize=MOMENTS, device="cpu")
    hardened = robust.harden(
        target, train, defense={"name": "bit-depth", "bits": 1}, threat="linf:0.1", validation=digits, suite=["fgsm"],
        device="cpu",
    )  # fmt: skip
    with torch.no_grad():
        expected = net((digits[0].round() - 0.3) / 0.35).argmax(1)
    assert hardened.report is not None
    assert hardened.report.verdicts["prediction"].tolist() == expected.tolist()


def test_each_of_two_transforms_is_put_in_front_once(net: nn.Module) -> None:
    train = load_data("builtin:digits:train").limit(100)
    hardened = robust.harden(net, train, defense="median+bit-depth", device="cpu")
    whole = make_defense("median+bit-depth").deployed(net)
    assert [name for name, _ in hardened.model.named_modules()] == [name for name, _ in whole.named_modules()]
    x = torch.rand(8, 1, 8, 8)
    once = Median(3)(BitDepth(3)(x))
    with torch.no_grad():
        assert hardened.model(x).equal(net(once))
        assert not net(once).equal(net(Median(3)(once))), "the net sees a transform that is there twice"


SWEEP = """
data = "builtin:digits"
train = "builtin:digits:train"
limit = 30
threats = ["linf:0.05"]
suites = [["fgsm"]]

[[models]]
spec = "builtin:digits-mlp"
normalize = [[0.3], [0.02]]

[[defenses]]
name = "none"
training = {epochs = 1, learning_rate = 0.01}
"""


def test_a_sweep_trains_with_the_normalisation_that_it_attacks_with(tmp_path: Path) -> None:
    """With a tiny deviation a net trained on plain images would see only saturated inputs, and guess."""
    (tmp_path / "plan.toml").write_text(SWEEP)
    result = run_sweep(load_config(tmp_path / "plan.toml"), tmp_path / "out", device="cpu")
    (record,) = result.records
    (weights,) = (tmp_path / "out" / "models").rglob("weights.safetensors")
    target = build_target(ModelRef("builtin:digits-mlp", normalize=((0.3,), (0.02,))), weights, "cpu")
    samples = load_data("builtin:digits").limit(30)
    with target, torch.no_grad():
        right = int((target.logits(samples.rows(slice(None))).argmax(1) == samples.y).sum())
    assert right == record.clean.k
    assert record.clean.value > 0.7


def images(folder: Path, side: int) -> Path:
    cells = []
    for shade in (40, 200):
        buffer = io.BytesIO()
        Image.new("RGB", (side, side + 4), (shade, 0, 0)).save(buffer, "PNG")
        cells.append(buffer.getvalue())
    pq.write_table(pa.table({"image": cells, "label": [0, 1]}), folder / "set.parquet")
    return folder / "set.parquet"


def test_a_sweep_reads_images_as_the_model_declares(tmp_path: Path) -> None:
    file = images(tmp_path, 20)
    fit = Preprocessing("test", size=(8, 8), resize=10)
    plain, fitted = hold(str(file), None, tmp_path, None), hold(str(file), None, tmp_path, fit)
    assert (plain.samples.x.shape[2:], fitted.samples.x.shape[2:]) == ((24, 20), (8, 8))
    assert fitted.sha256 == load_data(str(file), fit=fit).sha256


def test_a_record_says_what_images_went_through_and_verify_does_the_same(tmp_path: Path) -> None:
    file = images(tmp_path, 20)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    model[2].weight.data = torch.tensor([[-5.0, 0, 0], [5.0, 0, 0]])
    fit = Preprocessing("test", size=(8, 8), resize=10, interpolation="bicubic")
    target = Target(model, size=fit.size, preprocessing=fit, device="cpu")
    report = robust.evaluate(target, load_data(str(file), fit=fit), threat="linf:0.01", suite=["fgsm"])
    record = Record.from_report(report, name="net", defense={"name": "none", "parameters": {}})
    store = Store(tmp_path / "board")
    store.add(record, report.verdicts)
    found = {outcome.check: outcome.ok for outcome in verify(store, f"{record.id}.json")}
    assert found["data"] is True
    assert record.model.preprocess is not None
    assert (record.model.preprocess.size, record.model.preprocess.resize) == ((8, 8), 10)
    assert Record.loads(record.dumps()) == record
