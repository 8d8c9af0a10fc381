"""Do adversarial examples of a float twin fool the quantised model that is deployed?"""

from __future__ import annotations

from typing import Final

import torch

from robust.attacks import PGD
from robust.diagnose import checks
from robust.diagnose.checks import Finding
from robust.diagnose.probes import Subject
from robust.oracle import Oracle
from robust.quantized import Quantized
from robust.target import in_parts

_SEARCH: Final = PGD(steps=20, loss="margin", schedule="cosine", random_start=False)
_ENOUGH: Final = 0.5  # of the twin's adversarial examples
_FEW: Final = 4  # fewer say nothing


def transfer(subject: Subject) -> Finding | None:
    """Attack the twin of a quantised model alone, and count which of its examples fool the deployed model.

    Other models have no twin, and pass. The counts go to the subject's figures: twin_examples and
    twin_examples_transferred.
    """
    target = subject.target
    if not isinstance(target.model, Quantized):
        return None
    oracle = Oracle(
        target.twin(target.model.twin), subject.x, subject.y, subject.ids, subject.threat,
        purpose="check/transfer", micro_batch=subject.micro_batch,
    )  # fmt: skip
    _SEARCH(oracle)
    ledger = oracle.ledger
    found = ledger.broken.nonzero().squeeze(1)
    with torch.no_grad():
        fooled = sum(
            int((target.logits(ledger.x_adv[part]).argmax(1) != subject.y[part]).sum())
            for part in in_parts(found, subject.micro_batch)
        )
    subject.forwards += int(ledger.forwards.sum()) + len(found)
    subject.backwards += int(ledger.backwards.sum())
    subject.figures |= {"twin_examples": len(found), "twin_examples_transferred": fooled}
    if len(found) < _FEW or fooled >= _ENOUGH * len(found):
        return None
    return checks.GRADIENT_MODEL.finding(
        f"{fooled} of {len(found)} adversarial examples of the float twin fool the quantised model"
    )
