"""Pack what the check needs on a machine without network, beside torch and a few others that it has.

    python -m tests.gpu.offline [--out build/gpu/site.tar.xz]

The machine (x86-64, CPython 3.12) has torch 2.11, torchvision, pandas, pyarrow, grpcio and protobuf, and what
they need. The rest of what the check imports is taken from the wheels of requirements.lock, at their hashes,
without what no run imports: MuJoCo and the like, tests, headers. PyAV and OpenCV are
imported and never called, since the check's frames are pictures: of them an empty package goes along. Over
there:

    mkdir /tmp/site && tar -xJf site.tar.xz -C /tmp/site
    PYTHONPATH=/tmp/site PATH=$PATH:/tmp/site/bin python3 -m tests.gpu.check
"""

import argparse
import configparser
import json
import lzma
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from tests import REPOSITORY

_LIMIT_MIB = 64.0  # of the pack and the working tree together
_PRESENT = ("torch", "torchvision", "pandas", "pyarrow", "grpcio", "protobuf")
_CARRIED_ALL_THE_SAME = ("numpy",)  # LeRobot wants an older one than such a machine may have
_STUBS = {"av": "av", "opencv-python-headless": "cv2"}  # distribution -> its module
# Everything that some process of the check imports sooner or later.
_MODULES = (
    "flwr.supercore.cli",
    "flwr.superlink.cli",
    "flwr.supernode.cli",
    "flwr.cli.app",
    "client.supernode.preload",
    "server.app",
    "server.rounds",
    "server.evaluation.held_out",
    "server.output.report.report",
    "tensorboardX",
    "num2words",  # wanted by SmolVLM's processor
    "tests.gpu.parts",
)
_LIST_IMPORTED = """
import importlib, importlib.metadata as metadata, json, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
owners = metadata.packages_distributions()
names = {d.lower().replace("_", "-") for m in list(sys.modules) for d in owners.get(m.split(".")[0], [])}
print(json.dumps(sorted(names)))
"""
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
_DROPPED = re.compile(
    r"(^|/)(tests?|testing/tests|__pycache__|examples|docs?|benchmarks)/|\.(pyi|pyx|pxd|c|h|hpp|a|cmake)$|^numpy/f2py/"
    r"|\.dist-info/(RECORD|licenses/|sboms/)|^lerobot/(robots|teleoperators|motors|rl|scripts/.*viz)/.*\.(stl|png|urdf)$"
)
_STUB = '''"""Stands in for a package that the check imports and never works with."""

from types import SimpleNamespace
from typing import Any

__path__: list[str] = []


class _Names(type):
    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Names(name, (_Anything,), {})


class _Anything(Exception, metaclass=_Names):
    """What any name of the package is, and any name of that: a class whose objects have the same names."""

    # LeRobot looks a codec up also for pictures: it is there, with an option that nobody sets.
    type = "video"
    options = (SimpleNamespace(name="none"),)
    video_formats = ()
    components = ("r", "g", "b")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__class__, name)


def __getattr__(name: str) -> Any:
    return getattr(_Anything, name)
'''


def imported() -> set[str]:
    """Return the distributions that the check imports."""
    command = [sys.executable, "-c", _LIST_IMPORTED, *_MODULES]
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


def present() -> set[str]:
    """Return the distributions that the machine has: `_PRESENT` and all that they need."""
    from importlib import metadata

    from packaging.requirements import Requirement

    seen: set[str] = set()
    pending = list(_PRESENT)
    while pending:
        name = pending.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            needs = [Requirement(text) for text in metadata.requires(name) or []]
        except metadata.PackageNotFoundError:
            continue
        pending += [need.name for need in needs if not need.marker or need.marker.evaluate({"extra": ""})]
    return seen - set(_CARRIED_ALL_THE_SAME)


def fetch(names: Iterable[str], folder: Path) -> list[Path]:
    """Download the locked wheels of `names` for the machine into `folder`, unless it has them."""
    wanted = set(names)
    entries = re.split(r"\n(?=\S)", (REPOSITORY / "requirements.lock").read_text(encoding="utf-8"))
    locked = {entry.split("==")[0]: entry for entry in entries if entry.split("==")[0] in wanted}
    if missing := wanted - locked.keys():
        raise SystemExit(f"requirements.lock lacks {', '.join(sorted(missing))}: run make lock")
    versions = {name: re.split(r"[ ;\\\n]", entry.split("==")[1])[0] for name, entry in locked.items()}
    subset = folder / "subset.lock"
    folder.mkdir(parents=True, exist_ok=True)
    subset.write_text("\n".join(locked.values()) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
    command += ["--disable-pip-version-check", "--only-binary=:all:", "--python-version=3.12"]
    command += ["--implementation=cp", *(f"--platform={platform}_x86_64" for platform in _PLATFORMS)]
    subprocess.run([*command, "-d", str(folder), "-r", str(subset)], check=True)
    found = {}
    for wheel in folder.glob("*.whl"):
        name, version = wheel.name.split("-")[:2]
        if versions.get(name.lower().replace("_", "-")) == version:
            found[name] = wheel
    return sorted(found.values())


def unpack(wheels: Iterable[Path], site: Path) -> None:
    """Unpack `wheels` into `site`, without what is never imported, and write the commands they bring."""
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                path = re.sub(r"^[^/]+\.data/(purelib|platlib)/", "", name)
                if name.endswith("/") or _DROPPED.search(path):
                    continue
                target = site / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    for file in list(site.glob("*.dist-info/entry_points.txt")):
        _write_commands(file, site / "bin")


def _write_commands(entry_points: Path, folder: Path) -> None:
    parser = configparser.ConfigParser(delimiters=("=",))
    parser.read_string(entry_points.read_text(encoding="utf-8"))
    folder.mkdir(exist_ok=True)
    for name, target in parser["console_scripts"].items() if "console_scripts" in parser else ():
        module, function = target.split(":")
        script = folder / name
        lines = [
            "#!/usr/bin/env python3",
            "import sys",
            f"from {module} import {function}",
            f"sys.exit({function}())",
        ]
        script.write_text("\n".join(lines) + "\n", encoding="utf-8")
        script.chmod(0o755)


def write_stubs(site: Path) -> None:
    """Put empty packages into `site` for what is imported and never called."""
    from importlib import metadata

    for distribution, module in _STUBS.items():
        (site / module).mkdir()
        (site / module / "__init__.py").write_text(_STUB, encoding="utf-8")
        version = metadata.version(distribution)
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        text = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(text, encoding="utf-8")


def tree_bytes() -> int:
    """Return the size of the files that git would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True).stdout.split(b"\0")
    files = (REPOSITORY / name.decode() for name in names if name)
    return sum(file.lstat().st_size for file in files if file.is_symlink() or file.is_file())


def main() -> int:
    """Pack, print what is in it and the size reached; returns 1 if it is over the limit."""
    parser = argparse.ArgumentParser(description="What the check needs on a machine without network.")
    parser.add_argument("--out", type=Path, default=Path("build/gpu/site.tar.xz"))
    parser.add_argument("--preset", type=int, default=6, help="xz's, from 0, quick, to 9 (%(default)s)")
    options = parser.parse_args()
    names = imported() - present() - _STUBS.keys()
    wheels = fetch(names, options.out.parent / "wheels")
    with tempfile.TemporaryDirectory() as folder:
        site = Path(folder)
        unpack(wheels, site)
        write_stubs(site)
        with (
            lzma.open(options.out, "wb", preset=options.preset) as packed,
            tarfile.open(fileobj=packed, mode="w") as tar,
        ):
            for path in sorted(site.iterdir()):
                tar.add(path, path.name)
    sizes = sorted(((wheel.stat().st_size / 2**20, wheel.name) for wheel in wheels), reverse=True)
    for size, name in sizes[:12]:
        print(f"{size:6.1f} MiB {name}")
    pack, tree = options.out.stat().st_size / 2**20, tree_bytes() / 2**20
    total = sum(size for size, _ in sizes)
    print(f"{len(sizes)} wheels of {total:.1f} MiB, packed: {pack:.1f} MiB in {options.out}")
    print(f"with the working tree ({tree:.1f} MiB): {pack + tree:.1f} of {_LIMIT_MIB:.0f} MiB")
    return int(pack + tree > _LIMIT_MIB)


if __name__ == "__main__":
    sys.exit(main())
