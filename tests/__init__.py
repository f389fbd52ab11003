"""The tests of SO-100 Federation."""

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
