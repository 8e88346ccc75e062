"""Installs walpool when it is imported, with its settings from the environment; see `walpool.crewai.install`."""

from __future__ import annotations

from typing import Final

from walpool.crewai._install import Installation, install

__all__ = ["installation"]

installation: Final[Installation] = install()
"""What became of it."""
