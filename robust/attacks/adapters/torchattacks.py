"""torchattacks (Kim 2020, arXiv 2010.01950) by name: `torchattacks:PGD`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from torch import Tensor

from robust.attacks.adapters.library import Job, Library, Peer


def _gradient_sign(paper: str, share: float = 2.5, steps: str = "steps", differs: str = "") -> Peer:
    return Peer("linf", paper, step="alpha", share=share, steps=steps, differs=differs)


_TENTHS = {"max_iterations": 10}  # it looks for an early end after every tenth of them
_LAST = "returns the last iterate, not the best: a point that was adversarial on the way is lost"
_TRANSFER = "made to transfer to other models; here it is scored on the model that it attacks"


class Torchattacks(Library):
    """Adapters of torchattacks' attacks."""

    name = "torchattacks"
    package = "torchattacks"
    extra = "torchattacks"
    differs = (
        "works on [0, 1]; its parameters are in units of the box",
        "draws from the global generators, which are seeded for it and put back afterwards",
    )
    peers: ClassVar[Mapping[str, Peer]] = {
        "FGSM": Peer("linf", "Goodfellow et al. 2015"),
        "BIM": _gradient_sign("Kurakin et al. 2017", differs=_LAST),
        "RFGSM": _gradient_sign("Tramer et al. 2018", differs=_LAST),
        "PGD": _gradient_sign("Madry et al. 2018", differs=_LAST),
        "EOTPGD": _gradient_sign("Liu et al. 2019", differs=_LAST),
        "FFGSM": _gradient_sign("Wong et al. 2020", 1.25, ""),
        "TPGD": _gradient_sign(
            "Zhang et al. 2019", differs="ascends the KL divergence from the clean output"
        ),
        "MIFGSM": _gradient_sign("Dong et al. 2018", differs=_LAST),
        "UPGD": _gradient_sign("Madry et al. 2018", differs="PGD with loss, momentum and EOT to choose"),
        "DIFGSM": _gradient_sign("Xie et al. 2019", differs=_TRANSFER),
        "TIFGSM": Peer("linf", "Dong et al. 2019", step="alpha", channels=3, differs=_TRANSFER),
        "Jitter": _gradient_sign("Schwinn et al. 2021", differs=_LAST),
        "NIFGSM": _gradient_sign("Lin et al. 2020", differs=_TRANSFER),
        "SINIFGSM": _gradient_sign("Lin et al. 2020", differs=_TRANSFER),
        "VMIFGSM": _gradient_sign("Wang & He 2021", differs=_TRANSFER),
        "VNIFGSM": _gradient_sign("Wang & He 2021", differs=_TRANSFER),
        "PIFGSM": Peer("linf", "Gao et al. 2020", channels=3, differs=_TRANSFER),
        "PIFGSMPP": Peer("linf", "Gao et al. 2020", channels=3, differs=_TRANSFER),
        "PGDRS": _gradient_sign("Salman et al. 2019", differs="attacks the model under Gaussian noise"),
        "PGDRSL2": Peer(
            "l2", "Salman et al. 2019", step="alpha", differs="attacks the model under Gaussian noise"
        ),
        "PGDL2": Peer("l2", "Madry et al. 2018", step="alpha", differs=_LAST),
        "APGD": Peer("linf l2", "Croce & Hein 2020", differs="10 steps where the original makes 100"),
        "APGDT": Peer(
            "linf l2",
            "Croce & Hein 2020",
            classes=4,
            differs="10 steps where the original makes 100; asks for at least 4 classes",
        ),
        "FAB": Peer(
            "linf l2",
            "Croce & Hein 2020",
            minimum_norm=True,
            differs="10 steps where the original makes 100; its l1 variant does not run",
        ),
        "Square": Peer("linf l2", "Andriushchenko et al. 2020", "score"),
        "AutoAttack": Peer(
            "linf l2",
            "Croce & Hein 2020",
            classes=4,
            differs="not AutoAttack's budget: APGD, APGD-T and FAB-T make 10 steps, the original 100; `--suite autoattack` makes 100",
        ),
        "SPSA": Peer("linf", "Uesato et al. 2018", "score", differs="one step of 128 samples by default"),
        "CW": Peer(
            "l2",
            "Carlini & Wagner 2017",
            minimum_norm=True,
            differs="no search over c; the whole batch stops when its summed cost rises (group=1 stops each by its own); pixels at 0 and 1 cannot move",
        ),
        "DeepFool": Peer("l2", "Moosavi-Dezfooli et al. 2016", minimum_norm=True, alone=True),
        "SparseFool": Peer("l1 l0", "Modas et al. 2019", minimum_norm=True, alone=True),
        "EADL1": Peer("l1", "Chen et al. 2018", minimum_norm=True, least=_TENTHS),
        "EADEN": Peer(
            "l1 l2",
            "Chen et al. 2018",
            minimum_norm=True,
            least=_TENTHS,
            differs="minimises l1 and squared l2 together",
        ),
        "JSMA": Peer(
            "l0", "Papernot et al. 2016", alone=True, differs="aims at label + 1; changes values in pairs"
        ),
        "OnePixel": Peer(
            "l0", "Su et al. 2019", "score", alone=True, differs="pixels is eps over the channels"
        ),
        "Pixle": Peer(
            "l0", "Pomponi et al. 2022", "score", alone=True, differs="swaps pixels, without regard to eps"
        ),
    }
    absent: ClassVar[Mapping[str, str]] = {
        "VANILA": "it returns the clean input",
        "GN": "it is Gaussian noise without a bound",
        "MultiAttack": "give a list of attacks instead",
        "LGV": "it trains surrogate models on a data set",
    }
    real = frozenset({"c", "kappa", "lam", "decay", "scale", "nsig", "theta"})
    provided: ClassVar[Mapping[str, Callable[[Job], Any]]] = {
        "model": lambda job: job.model,
        "eps": lambda job: job.eps,
        "max_epsilon": lambda job: job.eps,
        "norm": lambda job: {"linf": "Linf", "l2": "L2", "l1": "L1"}[job.norm],
        "n_classes": lambda job: job.model.classes,
        "seed": lambda job: job.seed,
        "pixels": lambda job: job.pixels,
        "gamma": lambda job: min(1.0, job.eps / job.values),
        "verbose": lambda job: False,
    }

    def constructor(self, name: str) -> type[Any]:
        return getattr(self.load("torchattacks"), name)

    def search(self, name: str, job: Job) -> Tensor:
        attack = self.constructor(name)(**self.arguments(name, job))
        if name == "JSMA":  # of itself it takes every model for one of ten classes
            attack.set_mode_targeted_by_function(lambda _, labels: (labels + 1) % job.model.classes)
        return attack(job.x, job.y)
