"""Attacks of this project."""

from attacks.brightness import Brightness

__all__ = ["Brightness"]
