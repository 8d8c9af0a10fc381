"""What workers are asked to do, and the worker that does it: the same code in every executor."""

from __future__ import annotations

import json
import tempfile
import traceback
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

import torch

from robust.behind import load_behind
from robust.defenses import EpochResult, Trainer, Wrapper, make_defense
from robust.errors import ModelError, RobustError, StoreError
from robust.failures import out_of_memory
from robust.hardening import training_options
from robust.in_front import bare
from robust.leaderboard.artefacts import examples_bytes
from robust.parts import Part, Plan, attack_part
from robust.run import Precision, Progress, Settings
from robust.sources import Samples, load, model_sha256, origin_sha256, save_weights
from robust.suites import resolve
from robust.sweep.config import Suite
from robust.sweep.curves import CurvePart, attack_curve
from robust.target import Target
from robust.threat import Threat

_KEPT_MODELS: Final = 2  # built models that a worker keeps
_ROWS: Final = {"cpu": 128, "cuda": 512}  # of a pass, where the plan does not say

Tell = Callable[[Progress], None]


@dataclass(frozen=True)
class ModelRef:
    """A model to build: `weights` names an asset that is read into it, `behind` a transform in front of it.

    `origin` is the hash that its files must have (see `origin_sha256`); None: whatever they are.
    """

    spec: str
    weights: str | None = None
    seed: int = 0
    normalize: tuple[tuple[float, ...], tuple[float, ...]] | None = None  # None: as its source declares
    behind: str | None = None  # JSON: name of a defense that is a transform, and its options
    origin: str | None = None


@dataclass(frozen=True)
class TrainTask:
    """Train a pair's model.

    Attributes:
        title: for messages; id: unique in the sweep.
        data: asset of the training samples.
        training: options of the recipe to replace.
        folder: for checkpoints; `token` is the content of the file "token" in it, by which a worker sees
            that the folder is the driver's own. Elsewhere checkpoints are not kept.
    """

    id: str
    title: str
    model: ModelRef
    data: str
    defense: str
    options: dict[str, Any]
    threat: str | None
    recipe: str
    training: dict[str, Any]
    folder: str
    token: str


@dataclass(frozen=True)
class AttackTask:
    """Attack the samples at `rows`; see robust.parts. Of those at `show`, adversarial examples come back too."""

    id: str
    title: str
    model: ModelRef
    data: str
    threat: str
    suite: Suite
    seed: int
    cascade: bool
    rows: tuple[int, int]
    batch_size: int | None
    precision: Precision
    show: tuple[int, ...] = ()


@dataclass(frozen=True)
class CurveTask:
    """Find the radius up to which each of the samples at `rows` stands; see robust.sweep.curves."""

    id: str
    title: str
    model: ModelRef
    data: str
    threats: tuple[Threat, ...]
    suite: Suite
    seed: int
    rows: tuple[int, int]
    batch_size: int | None
    precision: Precision


Task = TrainTask | AttackTask | CurveTask


@dataclass(frozen=True)
class Trained:
    """A trained model as safetensors, and the figures of its epochs."""

    weights: bytes
    sha256: str
    history: list[EpochResult]


Result = Trained | Part | CurvePart
Ending = Literal["done", "failed", "lost", "fatal"]


@dataclass(frozen=True)
class Outcome:
    """How a task ended.

    Attributes:
        ending: "failed" is the task's own fault and would come again; "lost" is the worker's; "fatal"
            means that results cannot be kept.
        reason: one line; trace: the traceback.
        memory: it may be for want of memory.
        examples: `examples_bytes` of those that were asked for; None where none were.
    """

    task: Task
    ending: Ending
    result: Result | None = None
    reason: str = ""
    trace: str = ""
    memory: bool = False
    examples: bytes | None = None


class Assets(Protocol):
    """Where a worker finds samples and files that tasks name."""

    def samples(self, name: str) -> Samples:
        """The samples of that name."""

    def file(self, name: str) -> Path:
        """A local copy of the file of that name."""


class Folder:
    """Assets that are paths on this machine."""

    def samples(self, name: str) -> Samples:
        """Mapped into memory."""
        from robust.sweep.held import map_samples

        return map_samples(Path(name))

    def file(self, name: str) -> Path:
        """The file itself."""
        return Path(name)


@dataclass
class Worker:
    """Does tasks one after the other and keeps the models it has built.

    Args:
        assets: where samples and weights are.
        device: to work on.
    """

    assets: Assets
    device: str = "auto"
    _targets: OrderedDict[ModelRef, Target] = field(default_factory=OrderedDict)

    def do(self, task: Task, tell: Tell) -> Outcome:
        """Do a task; whatever it raises becomes its outcome."""
        try:
            result = self._do(task, tell)
            examples = None
            if isinstance(result, Part) and result.examples is not None:
                examples = examples_bytes(result.examples)  # tensors do not survive every way to the driver
                result = replace(result, examples=None)
            return Outcome(task, "done", result, examples=examples)
        except Exception as error:
            text = str(error) if isinstance(error, RobustError) else f"{type(error).__name__}: {error}"
            reason = " ".join(text.split()) or type(error).__name__
            ending: Ending = "fatal" if isinstance(error, StoreError) else "failed"
            return Outcome(task, ending, None, reason, traceback.format_exc(), out_of_memory(error))

    def _do(self, task: Task, tell: Tell) -> Result:
        if isinstance(task, TrainTask):
            return self._train(task, tell)
        target = self._target(task.model)
        rows = task.batch_size or _ROWS.get(target.device.type, 128)
        while True:
            settings = Settings(task.seed, rows, task.precision, progress=tell)
            try:
                return self._attack(task, target, settings)
            except Exception as error:
                if not out_of_memory(error) or rows == 1:
                    raise
            rows = max(1, rows // 2)  # outside the handler, so that the failed pass's memory is free
            if target.device.type == "cuda":
                torch.cuda.empty_cache()

    def _attack(self, task: AttackTask | CurveTask, target: Target, settings: Settings) -> Part | CurvePart:
        samples = self.assets.samples(task.data)
        if isinstance(task, CurveTask):
            return attack_curve(target, samples, task.threats, task.suite, settings, range(*task.rows))
        threat = Threat.parse(task.threat, target.bounds)
        plan = Plan(threat, *resolve(task.suite, threat), task.cascade)
        part = attack_part(
            target, samples, plan, replace(settings, keep_examples=bool(task.show)), range(*task.rows)
        )
        if part.examples is not None:
            shown = torch.isin(part.examples["sample_id"], samples.ids[list(task.show)])
            part.examples = {key: tensor[shown] for key, tensor in part.examples.items()}
        return part

    def _train(self, task: TrainTask, tell: Tell) -> Trained:
        options = training_options(task.recipe, {**task.training, "device": self.device})
        epochs: list[EpochResult] = []

        def tick(done: int, total: int) -> None:
            tell(Progress(f"epoch {len(epochs) + 1}/{options.epochs}", done, total, 0, 0))

        token = Path(task.folder) / "token"
        shared = token.is_file() and token.read_text(encoding="utf-8") == task.token
        trainer = Trainer(
            options, out=Path(task.folder) if shared else None, progress=epochs.append, ticks=tick
        )
        threat = None if task.threat is None else Threat.parse(task.threat)
        made = make_defense(task.defense, **task.options)
        ref = task.model
        target = build_target(ref, self._file(ref.weights), "cpu")
        prepared = target.as_module()
        fitted = made.fit(prepared, self.assets.samples(task.data), threat=threat, trainer=trainer)
        hardened = fitted if prepared is target.model else bare(fitted)
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "weights.safetensors"
            save_weights(hardened, path)
            return Trained(path.read_bytes(), model_sha256(hardened), trainer.history)

    def _target(self, ref: ModelRef) -> Target:
        """The model as it is attacked, built once and kept while it is in use."""
        if ref not in self._targets:
            path = self._file(ref.weights)
            self._targets[ref] = build_target(ref, path, self.device)
        self._targets.move_to_end(ref)
        while len(self._targets) > _KEPT_MODELS:
            self._targets.popitem(last=False)
        return self._targets[ref]

    def _file(self, name: str | None) -> Path | None:
        return None if name is None else self.assets.file(name)


def build_target(ref: ModelRef, weights: str | Path | None, device: str) -> Target:
    """A model as it is attacked, with the normalisation that was given, or that its source declares.

    Behind a transform, gradients pass it as if it were the identity; see `robust.BPDA`.

    Raises:
        ModelError: its files are no longer those that the results are to be filed under.
    """
    if ref.origin is not None and origin_sha256(ref.spec) not in (ref.origin, None):  # None: load says more
        raise ModelError(
            f"model {ref.spec}: its file, or one that it imports, has changed since the sweep began (or is another one "
            "on this machine); run the sweep again"
        )
    given: dict[str, Any] = {} if ref.normalize is None else {"normalize": ref.normalize}
    given |= {"device": device, "seed": ref.seed}
    if ref.behind is None:
        return load(ref.spec, weights, **given)
    made = make_defense(json.loads(ref.behind))
    assert isinstance(made, Wrapper)
    return load_behind(made, ref.spec, weights, **given)
