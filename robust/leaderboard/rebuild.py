"""The model of a record as it was attacked, from its SPEC: with what the record says was in front of it."""

from __future__ import annotations

from contextlib import suppress

from torch import nn

from robust.behind import transform_of
from robust.bpda import BPDA
from robust.defenses import Wrapper, make_defense
from robust.eot import EOT
from robust.errors import InputError, ModelError, UnknownNameError
from robust.in_front import Normalization
from robust.leaderboard.record import Record
from robust.leaderboard.reforward import preprocessing_of
from robust.leaderboard.schema import TRAINING
from robust.quantized import attackable
from robust.sources import load_model, load_weights, model_sha256
from robust.target import Target


def rebuild(
    record: Record,
    spec: str,
    weights: str | None = None,
    *,
    normalize: Normalization | None = None,
    device: str = "auto",
) -> Target:
    """The model that `spec` names, ready to be compared with the record's.

    Args:
        weights: of the model, or where a transform was in front of it, of both, as `robust harden` saves them.
        normalize: (mean, std), in place of the record's.

    Raises:
        InputError and its kin: as load_model does; a transform whose options cannot be read.
        MissingDependencyError: the transform's package cannot be imported.
    """
    wrapper = wrapper_of(record)
    try:
        target = _around(record, load_model(spec, weights), normalize, device)
    except ModelError:
        if wrapper is None or weights is None:
            raise
        inner = _around(record, load_model(spec), normalize, "cpu").as_module()
        whole = wrapper.deployed(inner, bounds=record.threat.bounds)
        with suppress(ModelError):
            load_weights(whole, weights)
            return _randomised(record, Target(whole, bounds=record.threat.bounds, device=device))
        raise
    if wrapper is not None and model_sha256(target.model) != record.model.weights_sha256:
        target = BPDA(wrapper.transform(target.bounds), target)
    return _randomised(record, target)


def wrapper_of(record: Record) -> Wrapper | None:
    """The transform that the record says was in front of its model, by its defense or the model's name; None for none.

    Raises:
        InputError: options that it does not have.
        MissingDependencyError: its package cannot be imported.
    """
    name = record.defense.name.rpartition("+")[2]
    options = dict(record.defense.parameters)
    if not options.pop("masks_gradients", False):
        return transform_of(record.model.spec)
    try:
        made = make_defense(
            name, **{k: v for k, v in options.items() if k not in ("of", "options", TRAINING)}
        )
    except UnknownNameError:
        return None
    return made if isinstance(made, Wrapper) else None


def _around(record: Record, module: nn.Module, normalize: Normalization | None, device: str) -> Target:
    fit = preprocessing_of(record)
    return Target(
        attackable(module), normalize=normalize or record.model.normalize, bounds=record.threat.bounds,
        device=device, size=None if fit is None else fit.size, preprocessing=fit,
    )  # fmt: skip


def _randomised(record: Record, target: Target) -> Target:
    eot = record.suite.eot
    if eot is None:
        return target
    if set(eot) != {"samples", "vote"}:
        raise InputError(
            f"record: eot: expected samples and vote, got {sorted(eot)}; ask for the record as written"
        )
    return EOT(target, eot["samples"], vote=eot["vote"], seed=record.seed)
