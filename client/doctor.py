"""The doctor: what would go wrong at this site, said before the first round.

    python -m client.doctor --dataset DIR [--superlink HOST:PORT --ca FILE --key FILE] [--scratch DIR]

One line for each check: the level, the thing, its value and, where something is wrong, the fix. Nothing
leaves the site but a TCP connection to SuperLink, a TLS handshake and one `GET /health`. In a site's
container the settings come from the environment (`FEDERATION_DATASET` and so on), so `doctor` alone does.

It looks at a data set as training will: tables whole, videos at the first and last frame of a few episodes.
A frame damaged in between is found by training, which skips it and counts it.
"""

import argparse
import os
import shutil
import socket
import ssl
import stat
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import numpy as np

from federation.cameras import parse_camera_names, spell_cameras
from federation.config import PolicyConfig
from federation.dataset_description import DatasetDescription, check_fits, describe_dataset, find_datasets
from federation.dataset_tables import read_episodes, read_frames
from federation.errors import ConfigError, DatasetError

__all__ = [
    "Check",
    "check_ca",
    "check_dataset",
    "check_device",
    "check_key",
    "check_scratch",
    "check_superlink",
    "main",
]

_SAMPLED_EPISODES = 3
_TIMESTAMP_TOLERANCE_SECONDS = 1e-4  # LeRobot's own: past it LeRobot refuses to load the frame
_LARGEST_ANGLE = 360.0  # degrees; normalised recordings stay within -100..100
_SMALLEST_ANGLE_SPAN = 7.0  # 2 pi and a little: a span below it looks like radians
_WARN_FREE_GB, _MIN_FREE_GB = 10.0, 1.0  # weights of the policy, an Arrow copy of the tables, residuals
_WARN_DAYS = 14
_CONNECT_SECONDS = 5.0
# Flower refuses a signature that is 300 s off; the levels leave room for drift and a slow connection.
_WARN_CLOCK_SECONDS, _MAX_CLOCK_SECONDS = 30.0, 240.0
_WARN_GPU_GB = 4.0  # SmolVLA's weights, gradients and Adam's state are 3 GB before the first activation
_EXPIRED, _NOT_YET_VALID, _WRONG_HOST, _WRONG_ADDRESS = 10, 9, 62, 64  # OpenSSL's X509_V_ERR_*


@dataclass(frozen=True)
class Check:
    """One line of the table: `level` is "ok", "warning" or "error"; `text` has the value and the fix."""

    level: str
    what: str
    text: str


def check_dataset(root: Path, cameras: Sequence[str], names: Mapping[str, str] | None = None) -> list[Check]:
    """Look at the data set in `root`: its files, cameras, numbers and a few frames of its videos.

    Args:
        cameras: those of the run.
        names: what the site says of its own (see `federation/cameras.py`).
    """
    try:
        description = describe_dataset(root)
    except DatasetError as error:
        return [Check("error", "data set", str(error))]
    except OSError as error:
        fix = f"give user {os.getuid()} the right to read it; in a site's bundle see SITE_UID in .env"
        return [Check("error", "data set", f"{root}: cannot be read ({error.strerror}); {fix}")]
    checks = [
        Check(
            "ok",
            "data set",
            f"{root}: {description.episodes} episodes, {description.frames} frames, {description.fps} fps",
        )
    ]
    if description.left_out:
        episodes = ", ".join(map(str, description.left_out[:5]))
        text = f"{root.name}: {len(description.left_out)} episodes are left out, they hold NaN: {episodes}"
        checks.append(Check("warning", "episodes", f"{text}; delete them with lerobot-edit-dataset"))
    policy = PolicyConfig(cameras=",".join(cameras), empty_cameras=len(cameras) - 1)
    try:
        matched = check_fits(description, policy, str(root), names)
    except DatasetError as error:
        checks.append(Check("error", "cameras", str(error)))
    else:
        text = f"{root.name}: {', '.join(spell_cameras(cameras, matched))}"
        text += f" (recorded: {', '.join(description.cameras)})"
        if lacking := len(cameras) - len(matched):
            fix = f"only a run with policy.empty_cameras = {lacking} or more takes it"
            checks.append(Check("warning", "cameras", f"{text}; {fix}"))
        else:
            checks.append(Check("ok", "cameras", text))
    found = [*_check_numbers(root, description), *_check_frames(root, description)]
    return [*checks, *(Check(check.level, check.what, f"{root.name}: {check.text}") for check in found)]


def check_scratch(folder: Path) -> list[Check]:
    """Look whether `folder` can be written and has room."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        fix = f"give user {os.getuid()} the right to write there, or name another folder"
        return [Check("error", "scratch", f"{folder}: cannot be written ({error.strerror}); {fix}")]
    free = shutil.disk_usage(folder).free / 1e9
    text = f"{folder}: writable, {free:.1f} GB free"
    if free < _MIN_FREE_GB:
        return [Check("error", "scratch", f"{text}, {_WARN_FREE_GB:.0f} GB are wanted; make room")]
    if free < _WARN_FREE_GB:
        return [Check("warning", "scratch", f"{text}, {_WARN_FREE_GB:.0f} GB are wanted; make room")]
    return [Check("ok", "scratch", text)]


def check_key(file: Path) -> list[Check]:
    """Look whether `file` is a SuperNode's private key that only its owner can read."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import load_ssh_private_key

    again = "unpack the site's bundle again, or ask the operator for a new one"
    try:
        content, mode = file.read_bytes(), stat.S_IMODE(file.stat().st_mode)
    except FileNotFoundError:
        return [Check("error", "key", f"{file}: missing; {again}")]
    except OSError as error:
        fix = f"make user {os.getuid()} its owner; in a site's bundle set SITE_UID in .env to what id -u says"
        return [Check("error", "key", f"{file}: cannot be read ({error.strerror}); {fix}")]
    try:
        key = load_ssh_private_key(content, None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return [Check("error", "key", f"{file}: no private key in OpenSSH form without a password; {again}")]
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        return [Check("error", "key", f"{file}: {type(key).__name__}, must be on an elliptic curve; {again}")]
    if mode & 0o077:
        return [Check("error", "key", f"{file}: mode {mode:o}, others can read it; chmod 600 {file}")]
    return [Check("ok", "key", f"{file}: ECDSA {key.curve.name}, mode {mode:o}")]


def check_ca(file: Path, now: datetime | None = None) -> list[Check]:
    """Look whether `file` is a certificate authority that is valid for a while."""
    from cryptography import x509

    again = "take ca.crt from the site's bundle, or ask the operator for it"
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
        constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    except FileNotFoundError:
        return [Check("error", "CA", f"{file}: missing; {again}")]
    except OSError as error:
        return [Check("error", "CA", f"{file}: cannot be read ({error.strerror}); {again}")]
    except (ValueError, x509.ExtensionNotFound):
        return [Check("error", "CA", f"{file}: is no certificate of an authority; {again}")]
    if not constraints.ca:
        return [Check("error", "CA", f"{file}: is a server's certificate, not the authority's; {again}")]
    now = now or datetime.now(UTC)
    if now < certificate.not_valid_before_utc:
        text = f"{file}: not valid before {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC"
        return [Check("error", "CA", f"{text}, this clock says {now:%Y-%m-%d %H:%M}; set the clock")]
    end = certificate.not_valid_after_utc
    if now > end:
        return [Check("error", "CA", f"{file}: expired on {end:%Y-%m-%d}; ask the operator for a new bundle")]
    left = (end - now).days
    return [_days_check("CA", f"{file}: {left} days left", left, "ask the operator for a new bundle")]


def check_superlink(host: str, port: int, ca: Path) -> list[Check]:
    """Reach SuperLink as a SuperNode will, step by step; the first step that fails ends it."""
    try:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # as Flower's: this authority and no other
        context.load_verify_locations(cafile=str(ca))
    except (OSError, ssl.SSLError):
        return [Check("error", "TLS", f"{ca}: no certificate to check the server with; see CA")]
    try:
        connection: socket.socket = socket.create_connection((host, port), timeout=_CONNECT_SECONDS)
    except OSError as error:
        return [_connection_failed(host, port, error)]
    checks = [Check("ok", "connection", f"{host}:{port}: reached at {connection.getpeername()[0]}")]
    with connection:
        try:
            secured = context.wrap_socket(connection, server_hostname=host)
        except OSError as error:
            return [*checks, _handshake_failed(host, port, ca, error)]
        with secured:
            checks.append(_check_certificate(secured))
            return [*checks, *_check_health(secured, host, port)]


def check_device() -> list[Check]:
    """Look what training will run on."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return [
            Check("error", "device", f"torch cannot be imported ({error}); install the site's image again")
        ]
    if not torch.cuda.is_available():
        if torch.backends.mps.is_available():
            return [Check("ok", "device", "Apple GPU (MPS)")]
        fix = "if this machine has an NVIDIA GPU, install its driver and turn on the GPU line in .env"
        return [
            Check("warning", "device", f"no GPU: training runs on {os.cpu_count()} CPU cores, slowly; {fix}")
        ]
    name = torch.cuda.get_device_name(0)
    free, total = (size / 1e9 for size in torch.cuda.mem_get_info(0))
    text = f"{name}: {free:.1f} of {total:.1f} GB free"
    if free < _WARN_GPU_GB:
        return [Check("warning", "device", f"{text}, SmolVLA wants {_WARN_GPU_GB:.0f} GB; end what uses it")]
    return [Check("ok", "device", text)]


def main() -> int:
    """Print the table; exit code 1 if a check found an error, 2 for bad arguments."""
    arguments = _parse_arguments()
    failed = False
    for check in _examine(arguments):
        print(f"{check.level:<8} {check.what:<11} {check.text}", flush=True)
        failed |= check.level == "error"
    print("this site is not ready: mend the errors above" if failed else "this site is ready")
    return int(failed)


def _examine(arguments: argparse.Namespace) -> Iterator[Check]:
    for root in _datasets(arguments.dataset):
        cameras = [name.strip() for name in arguments.cameras.split(",")]
        yield from check_dataset(root, cameras, arguments.camera_names)
    if arguments.scratch:
        yield from check_scratch(arguments.scratch)
    if arguments.key:
        yield from check_key(arguments.key)
    if arguments.ca:
        yield from check_ca(arguments.ca)
    if arguments.superlink:
        host, port = arguments.superlink
        yield from check_superlink(host, port, arguments.ca)
    yield from check_device()


def _parse_arguments() -> argparse.Namespace:
    environment = os.environ.get
    parser = argparse.ArgumentParser(
        prog="doctor",
        description="Say what would go wrong at this site. Each option can be given in the environment: "
        "--dataset as FEDERATION_DATASET, and so on.",
    )
    parser.add_argument("--dataset", type=Path, default=environment("FEDERATION_DATASET"), metavar="DIR")
    parser.add_argument(
        "--superlink", type=_address, default=environment("FEDERATION_SUPERLINK"), metavar="HOST:PORT"
    )
    parser.add_argument("--ca", type=Path, default=environment("FEDERATION_CA"), metavar="FILE")
    parser.add_argument("--key", type=Path, default=environment("FEDERATION_KEY"), metavar="FILE")
    parser.add_argument("--scratch", type=Path, default=environment("FEDERATION_SCRATCH"), metavar="DIR")
    parser.add_argument(
        "--cameras",
        default=environment("FEDERATION_CAMERAS") or PolicyConfig().cameras,
        help="those of the run configuration, policy.cameras (default: %(default)s)",
    )
    parser.add_argument(
        "--camera-names",
        type=_camera_names,
        default=environment("FEDERATION_CAMERA_NAMES") or {},
        metavar="POLICY=OWN,...",
        help="this site's name for a camera of the run, where it cannot be told",
    )
    arguments = parser.parse_args()
    if not arguments.dataset:
        parser.error("--dataset is missing: name the folder of a LeRobot v3 data set")
    if arguments.superlink and not arguments.ca:
        parser.error("--superlink needs --ca: the authority's certificate, ca.crt of the site's bundle")
    return arguments


def _camera_names(text: str) -> dict[str, str]:
    try:
        return parse_camera_names(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} must be HOST:PORT, e.g. fed.example.org:443")
    return host.strip("[]"), int(port)


def _datasets(folder: Path) -> list[Path]:
    """The data sets in `folder`, or `folder` itself, for `check_dataset` to say what it lacks."""
    try:
        return list(find_datasets(folder).values())
    except (DatasetError, OSError):
        return [folder]


def _check_numbers(root: Path, description: DatasetDescription) -> list[Check]:
    """Time stamps and ranges over all frames; seconds even for hundreds of thousands."""
    try:
        frames = read_frames(root, ("episode_index", "frame_index", "timestamp"))
    except DatasetError as error:
        return [Check("error", "frames", str(error))]
    rows = len(frames["episode_index"])
    if rows != description.frames:
        text = f"{rows} rows in data/, {description.frames} frames in meta/info.json"
        return [Check("error", "frames", f"{text}; copy the data set again")]
    checks = [_check_timestamps(frames, description.fps)]
    for feature, named in description.statistics.items():
        checks.append(_check_range(feature.rpartition(".")[2], named["min"], named["max"]))
    return checks


def _check_timestamps(values: dict[str, np.ndarray], fps: int) -> Check:
    expected = values["frame_index"] / fps
    wrong = np.flatnonzero(~(np.abs(values["timestamp"] - expected) <= _TIMESTAMP_TOLERANCE_SECONDS))
    if not len(wrong):
        return Check("ok", "timestamps", f"{len(expected)} frames, each 1/{fps} s after the last")
    first = wrong[0]
    return Check(
        "error",
        "timestamps",
        f"{len(wrong)} of {len(expected)} frames are not at frame / {fps} fps, the first is frame "
        f"{values['frame_index'][first]:.0f} of episode {values['episode_index'][first]:.0f} at "
        f"{values['timestamp'][first]:.4f} s; record again or correct fps in meta/info.json",
    )


def _check_range(name: str, lowest: np.ndarray, highest: np.ndarray) -> Check:
    low, high = float(lowest.min()), float(highest.max())
    text = f"{low:.1f} to {high:.1f}"
    if max(-low, high) > _LARGEST_ANGLE:
        return Check("error", name, f"{text}: no joint of an SO-100 gets there; calibrate and record again")
    if high - low < _SMALLEST_ANGLE_SPAN:
        fix = "the arm did not move, or these are radians: SO-100 recordings are in degrees or -100 to 100"
        return Check("warning", name, f"{text}: {fix}")
    return Check("ok", name, text)


def _check_frames(root: Path, description: DatasetDescription) -> list[Check]:
    """Decode the first and the last frame of a few episodes, of every camera."""
    import json

    info = json.loads((root / "meta" / "info.json").read_text(encoding="utf-8"))
    rows = read_episodes(root)
    chosen = {round(i * (len(rows) - 1) / (_SAMPLED_EPISODES - 1)) for i in range(_SAMPLED_EPISODES)}
    checks = []
    for camera in description.cameras:
        key = f"observation.images.{camera}"
        if info["features"][key]["dtype"] != "video":
            text = "stored as images: every frame takes about five times as long to load; prefer video"
            checks.append(Check("warning", f"video {camera}", text))
            continue
        for row in (rows[index] for index in sorted(chosen)):
            file = root / info["video_path"].format(
                video_key=key,
                chunk_index=row[f"videos/{key}/chunk_index"],
                file_index=row[f"videos/{key}/file_index"],
            )
            start = float(row[f"videos/{key}/from_timestamp"])
            last = start + (row["length"] - 1) / description.fps
            try:
                for second in (start, last):
                    _decode_frame(file, second, 0.5 / description.fps)
            except (OSError, ValueError) as error:
                name = f"{file.relative_to(root)}: episode {row['episode_index']} cannot be decoded"
                text = f"{name} ({_line(error)}); copy the file again or delete the episode"
                checks.append(Check("error", f"video {camera}", text))
                break
        else:
            text = f"first and last frame of {len(chosen)} episodes decoded"
            checks.append(Check("ok", f"video {camera}", text))
    return checks


def _decode_frame(file: Path, second: float, tolerance: float) -> None:
    """Raise an OSError or ValueError unless the video has a frame at `second`."""
    import av

    try:
        with av.open(str(file)) as container:
            stream = container.streams.video[0]
            container.seek(int(second / stream.time_base), stream=stream)  # type: ignore[operator]
            for frame in container.decode(stream):
                if frame.time is not None and frame.time >= second - tolerance:
                    if frame.time > second + tolerance:
                        break
                    frame.to_ndarray(format="rgb24")
                    return
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(_line(error)) from None
    raise ValueError(f"no frame at {second:.3f} s")


def _connection_failed(host: str, port: int, error: OSError) -> Check:
    where = f"{host}:{port}"
    if isinstance(error, socket.gaierror):
        text = f"{where}: the name {host} is not known here; check SUPERLINK and this network's DNS"
    elif isinstance(error, ConnectionRefusedError):
        text = f"{where}: refused; check the port, and ask the operator whether SuperLink runs"
    elif isinstance(error, TimeoutError):
        text = f"{where}: no answer in {_CONNECT_SECONDS:.0f} s; a firewall here or there drops the port"
    else:
        text = f"{where}: {error.strerror or error}; check this machine's network"
    return Check("error", "connection", text)


def _handshake_failed(host: str, port: int, ca: Path, error: OSError) -> Check:
    where = f"{host}:{port}"
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code == _EXPIRED:
            text = "the server's certificate expired; the operator runs make certs ROTATE=1"
        elif error.verify_code == _NOT_YET_VALID:
            text = f"the certificate is not valid yet, this clock says {datetime.now(UTC):%F %R} UTC; set it"
        elif error.verify_code in (_WRONG_HOST, _WRONG_ADDRESS):
            text = (
                f"the certificate is not valid for {host}; use a name it has, or the operator adds this one "
                "to hosts in configs/certs.toml and runs make certs ROTATE=1"
            )
        else:
            text = f"the certificate is not signed by {ca}; take ca.crt from the operator of this server"
    elif isinstance(error, TimeoutError):
        text = f"no TLS answer in {_CONNECT_SECONDS:.0f} s; something else than SuperLink listens there"
    elif isinstance(error, ssl.SSLError) and error.reason in ("WRONG_VERSION_NUMBER", "HTTP_REQUEST"):
        text = "the server speaks plaintext, not TLS; check the port, and never join without TLS"
    else:
        text = f"the TLS handshake failed ({_line(error)}); something else than SuperLink listens there"
    return Check("error", "TLS", f"{where}: {text}")


def _check_certificate(secured: ssl.SSLSocket) -> Check:
    certificate: dict[str, Any] = secured.getpeercert() or {}
    left = int((ssl.cert_time_to_seconds(certificate["notAfter"]) - datetime.now(UTC).timestamp()) // 86400)
    text = f"{secured.version()}, the server's certificate has {left} days left"
    return _days_check("TLS", text, left, "the operator runs make certs ROTATE=1")


def _check_health(secured: ssl.SSLSocket, host: str, port: int) -> list[Check]:
    """`GET /health`, and the clock of whoever answers."""
    connection = HTTPConnection(host, port)
    connection.sock = secured
    before = datetime.now(UTC).timestamp()
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        answer.read()
    except (HTTPException, OSError) as error:
        text = f"no HTTP answer ({_line(error)}); something else than SuperLink listens there"
        return [Check("error", "health", text)]
    if answer.status != 200:
        fix = "ask the operator whether SuperLink runs behind this port"
        return [Check("error", "health", f"GET /health: status {answer.status}, must be 200; {fix}")]
    checks = [Check("ok", "health", "GET /health: 200")]
    try:
        theirs = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (TypeError, ValueError):
        return [*checks, Check("warning", "clock", "the server tells no time; compare the clocks yourself")]
    return [*checks, _check_clock((before + datetime.now(UTC).timestamp()) / 2 - theirs)]


def _check_clock(ahead: float) -> Check:
    text = f"{abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if abs(ahead) > _WARN_CLOCK_SECONDS:
        level = "error" if abs(ahead) > _MAX_CLOCK_SECONDS else "warning"
        return Check(level, "clock", f"{text}, 300 s and the site is refused; turn on time synchronisation")
    return Check("ok", "clock", text)


def _days_check(what: str, text: str, left: float, fix: str) -> Check:
    return Check("warning", what, f"{text}; {fix}") if left < _WARN_DAYS else Check("ok", what, text)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


if __name__ == "__main__":
    sys.exit(main())
