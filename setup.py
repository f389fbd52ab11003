"""Builds what pyproject.toml describes, without files that an earlier build left in build/lib.

setuptools would pack them again, and a site whose files are not the server's, one for one, refuses its app.
"""

import shutil
from pathlib import Path

from setuptools import setup

shutil.rmtree(Path(__file__).parent / "build" / "lib", ignore_errors=True)
setup()
