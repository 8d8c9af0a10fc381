"""What each version of a suite has stood for, so that records of older ones can still be held to it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from robust.leaderboard.artefacts import sha256
from robust.leaderboard.schema import AttackInfo, canonical


def fingerprint(attacks: Sequence[AttackInfo]) -> str:
    """Hash of a suite's attacks as a record lists them: names, labels, parameters and whom each is shown."""
    said = [[entry.name, entry.label, entry.parameters, entry.selection] for entry in attacks]
    return sha256(canonical(said).encode())[:32]


# (suite, version) -> norm -> fingerprint. Lines are added, never changed: records of them are about.
HISTORY: Final[dict[tuple[str, int], dict[str, str]]] = {
    ("quick", 1): {
        "linf": "f408df9d238498e35a7d498a7fa6b0f5",
        "l2": "f408df9d238498e35a7d498a7fa6b0f5",
        "l1": "f408df9d238498e35a7d498a7fa6b0f5",
    },
    ("standard", 5): {
        "linf": "cc61bbd26ab3af3e917fcbb6ae0ff340",
        "l2": "5007a0439c0259c83858f1231142a0ab",
        "l1": "b790ad946fd7351d83f119c88dc598ad",
        "l0": "9e1374f975e3098c9aedfb6e5c263916",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("thorough", 5): {
        "linf": "072054ee244b12852033ab41e393db11",
        "l2": "3744a7b2706f6b2ddf0610deac56cfec",
        "l1": "07ef17c7414aac0c5974a13302584f73",
        "l0": "79cebe2b03aa66e3f1eb12cb1148361c",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("autoattack", 2): {"linf": "dc0b730149764f4d4c88c47e6091b772", "l2": "dc0b730149764f4d4c88c47e6091b772"},
    ("demo", 1): {
        "linf": "66ce99dd0c0674848e69c4a7a19f3d23",
        "l2": "fb81b681e6520383d651b3d006caeaad",
        "l1": "66ce99dd0c0674848e69c4a7a19f3d23",
    },
    ("standard", 6): {
        "linf": "cdf440783624efb80cf558671e321517",
        "l2": "681d457edf329d92dd0d0f9b1adfba66",
        "l1": "b790ad946fd7351d83f119c88dc598ad",
        "l0": "9e1374f975e3098c9aedfb6e5c263916",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("thorough", 6): {
        "linf": "6a155c18aaedcdcdc189dc8f7f1e07e2",
        "l2": "9e7461f4bb70ce24d3e6ca83b6cc0d9c",
        "l1": "07ef17c7414aac0c5974a13302584f73",
        "l0": "79cebe2b03aa66e3f1eb12cb1148361c",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("autoattack", 3): {
        "linf": "5ee0e2941cbd103636a0806224e1cdd7",
        "l2": "5ee0e2941cbd103636a0806224e1cdd7",
    },
    ("standard", 7): {
        "linf": "3c4a3689767ba4d140e7b5232a2d88cd",
        "l2": "b0d604852015532aeee7b39848464471",
        "l1": "7b54c4b89108e1eb4064420eff70f9f2",
        "l0": "9e1374f975e3098c9aedfb6e5c263916",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("thorough", 7): {
        "linf": "f1d39b68be9838c31a3a8773e2a8d0f8",
        "l2": "8d4b08de11afab8c738eb20517aed139",
        "l1": "110ff4e04b8356597c7e60bd0a890ab0",
        "l0": "79cebe2b03aa66e3f1eb12cb1148361c",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("autoattack", 4): {
        "linf": "2a2d37f1057091f277ac2430b4122c0a",
        "l2": "2a2d37f1057091f277ac2430b4122c0a",
    },
    ("standard", 8): {
        "linf": "072ab201c3547bd5891db3cf18b67c07",
        "l2": "eb30014b11eca5e96f88e5aa381dbb16",
        "l1": "7b54c4b89108e1eb4064420eff70f9f2",
        "l0": "9e1374f975e3098c9aedfb6e5c263916",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("thorough", 8): {
        "linf": "8123cbdc170b4f740f85d362f12ba7dd",
        "l2": "eb3de6f8d2a6270ed2689331921edad3",
        "l1": "110ff4e04b8356597c7e60bd0a890ab0",
        "l0": "79cebe2b03aa66e3f1eb12cb1148361c",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("standard", 9): {
        "linf": "ae59f934a55de9e94c48e950417b33d8",
        "l2": "eb30014b11eca5e96f88e5aa381dbb16",
        "l1": "7b54c4b89108e1eb4064420eff70f9f2",
        "l0": "9e1374f975e3098c9aedfb6e5c263916",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("thorough", 9): {
        "linf": "b3c72d838e30255d0c31f6e938d8995b",
        "l2": "eb3de6f8d2a6270ed2689331921edad3",
        "l1": "110ff4e04b8356597c7e60bd0a890ab0",
        "l0": "79cebe2b03aa66e3f1eb12cb1148361c",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("standard", 10): {
        "linf": "24b143065e937c75b8cae8dcc5d17fd6",
        "l2": "37a638ffb3733a8f5d71c30e6eabab96",
        "l1": "52a17a659d48d446c55ff821f702912d",
        "l0": "9e1374f975e3098c9aedfb6e5c263916",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("thorough", 10): {
        "linf": "472943d2af74b51b468d50bbb8b11d16",
        "l2": "43af6e611e88009765fec0c504800c78",
        "l1": "d0b3c65a631277468b10e625402e1e96",
        "l0": "79cebe2b03aa66e3f1eb12cb1148361c",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("autoattack", 5): {
        "linf": "4adcc59782323a72cff5da2926ba4722",
        "l2": "4adcc59782323a72cff5da2926ba4722",
    },
    ("standard", 11): {
        "linf": "acfbedd209e51245d8ccc173b217592f",
        "l2": "aa8c8a6b855e2f34786f8fdc2d7a9ea8",
        "l1": "52a17a659d48d446c55ff821f702912d",
        "l0": "9e1374f975e3098c9aedfb6e5c263916",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("thorough", 11): {
        "linf": "be4ce4c6d3bf547ee355d41a2a8aa948",
        "l2": "89569c40ffc2b7266a654a8ad8828a2c",
        "l1": "d0b3c65a631277468b10e625402e1e96",
        "l0": "79cebe2b03aa66e3f1eb12cb1148361c",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("standard", 12): {
        "linf": "c246f9b0d6084f6959dbbe1e3990f13a",
        "l2": "e922919a6c8ab49522a927c6d5cf6937",
        "l1": "52a17a659d48d446c55ff821f702912d",
        "l0": "9e1374f975e3098c9aedfb6e5c263916",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("thorough", 12): {
        "linf": "96ba77e8f488bb4c7788e9f8c5298ced",
        "l2": "e0f21751dedf4be15930748b7291fa88",
        "l1": "bb284754f1f78657d42d3ee9535766a2",
        "l0": "79cebe2b03aa66e3f1eb12cb1148361c",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("standard", 13): {
        "linf": "21790b660fb3c7eea79f18073b41ec46",
        "l2": "6bb54e52f9dff7aa18789bdf409432ae",
        "l1": "52a17a659d48d446c55ff821f702912d",
        "l0": "9e1374f975e3098c9aedfb6e5c263916",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("thorough", 13): {
        "linf": "5470ff1a4b230330ee99e31684e27c9f",
        "l2": "a980c637f4625d490e3776f462344df4",
        "l1": "bb284754f1f78657d42d3ee9535766a2",
        "l0": "79cebe2b03aa66e3f1eb12cb1148361c",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("standard", 14): {
        "linf": "c4b934d04a071fdcc4f9a2faa4234221",
        "l2": "6bb54e52f9dff7aa18789bdf409432ae",
        "l1": "52a17a659d48d446c55ff821f702912d",
        "l0": "9e1374f975e3098c9aedfb6e5c263916",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
    ("thorough", 14): {
        "linf": "cabd3e14ca6b767a1d4993c5a819f806",
        "l2": "a980c637f4625d490e3776f462344df4",
        "l1": "bb284754f1f78657d42d3ee9535766a2",
        "l0": "79cebe2b03aa66e3f1eb12cb1148361c",
        "spatial": "ba6f0bef4d4d7dccdda08806dcebace4",
        "corruptions": "8030454afaa9d84e6333b5d704b98e26",
        "patch": "6037904ea7a7cf5ab285ab5b95621f45",
    },
}
