"""Threats that are no norm balls: spatial transformations, common corruptions, patches."""

from __future__ import annotations

from robust.families.base import Family, FiniteFamily
from robust.families.corruptions import Corruptions
from robust.families.patch import Patch
from robust.families.spatial import Spatial

FAMILIES: dict[str, type[Family]] = {"spatial": Spatial, "corruptions": Corruptions, "patch": Patch}

__all__ = ["FAMILIES", "Corruptions", "Family", "FiniteFamily", "Patch", "Spatial"]
