"""Trees of tiny images."""

from tests.unit.datasets.conftest import tree

__all__ = ["tree"]
