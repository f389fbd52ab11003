"""A site's training samples, decoded once: a file on scratch with one record for each.

Training visits frames in random order, and a random frame of a video costs a seek, the decoding of its
neighbours and a resize, for every camera and every time. Here a sample is decoded when it is first drawn, or
before that in the order of the recording (`fill`, while a GPU trains), and stored as training will see it;
from then on it is one `pread`. Images are stored as 8-bit values, shrunk to what the policy would shrink them
to; the first draw goes through the same bytes, so that what is trained on does not depend on what happens to
be cached.

A record carries a checksum, so a torn or damaged one is decoded again. The file is named after the data
set's files (their sizes and times), the layout of a sample and what makes one: data that changed is never
mixed with data that was. When the limit is reached or the disk fills up, the samples that have no record are
decoded as ever.
"""

import contextlib
import hashlib
import os
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.utils.constants import OBS_IMAGES
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from federation.data.loading import (
    DECODE_ERRORS,
    Frames,
    open_dataset,
    policy_inputs,
    with_empty_cameras,
)
from federation.files import fingerprint
from federation.logs import get_logger

__all__ = ["SampleCache", "open_samples", "shrunk_size"]

_FORMAT = 1  # counted up whenever samples come to be made otherwise of the same files
_CHECKSUM = "crc32"  # the first of a record
_TEXT_BYTES = 512  # of a task; a longer one is not cached
_SPARE_BYTES = 2 * 10**9  # of the disk, left for weights and residuals
_PROBED_SAMPLES = 50
_log = get_logger("federation.data.sample_cache")


class SampleCache(Dataset[dict[str, Any]]):
    """The inputs of `policy` for each item of `dataset`, from the file where it has them.

    Args:
        dataset: opened by `open_dataset`.
        name: names the dataset in errors.
        folder: where the file lies; files of other datasets and layouts in it are removed.
        source: changes whenever an item may look different.
        max_bytes: how large the file may get; 0 caches nothing.
        cameras: as for `policy_inputs`.
    """

    shares: tuple[tuple[int, float], ...] = ()  # of one recording every frame is drawn equally often

    def __init__(
        self,
        dataset: Frames,
        policy: SmolVLAConfig,
        *,
        name: str,
        folder: Path,
        source: str,
        max_bytes: int,
        cameras: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._dataset, self._policy, self._cameras = dataset, policy, cameras
        self._file: int | None = None
        self._records = 0
        self._layout = self._probe_layout() if max_bytes else None
        if self._layout is None:
            return
        length = len(dataset)
        key = hashlib.sha256(f"{source}/{self._layout.descr}/{length}".encode()).hexdigest()[:16]
        self._path = folder / f"{key}.samples"
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob("*.samples"):
            if other != self._path:
                other.unlink()
        self._path.touch(mode=0o600)
        held = self._path.stat().st_blocks * 512
        room = min(max_bytes, held + max(0, shutil.disk_usage(folder).free - _SPARE_BYTES))
        self._records = min(length, room // self._layout.itemsize)
        if self._records < length:
            _log.warning(
                "room for %d of %d decoded samples (%.1f GB); the others are decoded every time",
                self._records,
                length,
                room / 1e9,
            )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Return the sample `index`, as `policy_inputs` does, with images no larger than the policy needs.

        A camera that the dataset lacks is an empty one.

        Raises:
            DECODE_ERRORS: its video cannot be decoded.
        """
        return with_empty_cameras(self._recorded(index), self._policy)

    @property
    def is_full(self) -> bool:
        """Whether the file has as many blocks as it would have with a record for each sample."""
        if self._layout is None or not self._records:
            return True
        return os.fstat(self._open()).st_blocks * 512 >= self._records * self._layout.itemsize

    def fill(self, may_go_on: Callable[[], bool]) -> int:
        """Decode the samples that have no record yet, in their order; return how many those were.

        Args:
            may_go_on: asked before each sample.
        """
        filled = 0
        self._dataset.read_forward()
        for index in range(self._records):
            if not may_go_on():
                break
            if not self._has_record(index):
                with contextlib.suppress(*DECODE_ERRORS):
                    self._recorded(index)
                    filled += 1
        return filled

    def _has_record(self, index: int) -> bool:
        """Whether something was written for a sample: where nothing was, the checksum is 0."""
        assert self._layout is not None
        return any(os.pread(self._open(), self._layout[_CHECKSUM].itemsize, index * self._layout.itemsize))

    def _recorded(self, index: int) -> dict[str, Any]:
        if (record := self._read(index)) is not None:
            return _unpack(record)
        sample = self._decode(index)
        if self._layout is None or (record := _pack(sample, self._layout)) is None:
            return sample
        self._write(index, record)
        return _unpack(record)

    def _decode(self, index: int) -> dict[str, Any]:
        return self._shrunk(policy_inputs(self._dataset[index], self._policy, self._cameras))

    def _shrunk(self, sample: dict[str, Any]) -> dict[str, Any]:
        return {key: _shrink(v, self._policy) if _is_image(key, v) else v for key, v in sample.items()}

    def _probe_layout(self) -> np.dtype[Any] | None:
        """Return the layout of a record, from the first sample that can be decoded; None if it finds none."""
        for index in range(min(len(self), _PROBED_SAMPLES)):
            with contextlib.suppress(*DECODE_ERRORS):
                return _layout(self._decode(index))
        return None

    def _read(self, index: int) -> NDArray[Any] | None:
        if index >= self._records or self._layout is None:
            return None
        size = self._layout.itemsize
        content = os.pread(self._open(), size, index * size)
        if len(content) < size:
            return None
        record = np.frombuffer(content, self._layout)
        return record if _checksum(record) == record[_CHECKSUM][0] else None

    def _write(self, index: int, record: NDArray[Any]) -> None:
        if index >= self._records:
            return
        try:
            os.pwrite(self._open(), record.tobytes(), index * record.itemsize)
        except OSError as error:
            self._records = 0
            _log.warning("decoded samples are kept no longer: %s: %s", self._path, error.strerror)

    def _open(self) -> int:
        """Return the file's descriptor; open it once in each data loading process."""
        if self._file is None:
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        """Return what a spawned data loading process gets: it opens the file itself."""
        return {**self.__dict__, "_file": None}


def open_samples(
    root: Path,
    policy: SmolVLAConfig,
    folder: Path,
    max_bytes: int,
    cameras: Mapping[str, str] | None = None,
    episodes: Sequence[int] | None = None,
) -> SampleCache:
    """Return the training samples of the dataset in `root`, of which `max_bytes` are kept in `folder`.

    LeRobot's Arrow copy of the dataset's tables lies there too.

    Args:
        cameras: as for `policy_inputs`.
        episodes: as for `open_dataset`.

    Raises:
        DatasetError: LeRobot cannot open the dataset.
    """
    source = f"{_FORMAT}/{version('lerobot')}/{fingerprint(root)}/{cameras}/{episodes}"
    arrow = folder / "arrow" / hashlib.sha256(source.encode()).hexdigest()[:16]
    for other in set(arrow.parent.glob("*")) - {arrow}:  # of files, episodes or cameras that were others
        shutil.rmtree(other, ignore_errors=True)
    return SampleCache(
        open_dataset(root, policy, episodes, cameras, arrow),
        policy,
        name=str(root),
        folder=folder,
        source=source,
        max_bytes=max_bytes,
        cameras=cameras,
    )


def shrunk_size(size: tuple[int, int], policy: SmolVLAConfig) -> tuple[int, int]:
    """(height, width) of an image of `size`, scaled down as SmolVLA does before it pads; never up."""
    if policy.resize_imgs_with_padding is None:
        return size
    width, height = policy.resize_imgs_with_padding
    ratio = max(size[1] / width, size[0] / height, 1)
    return int(size[0] / ratio), int(size[1] / ratio)


def _shrink(image: Tensor, policy: SmolVLAConfig) -> Tensor:
    """Scale an image (C, H, W) down to what the policy would scale it to."""
    size = shrunk_size((image.shape[1], image.shape[2]), policy)
    if size == image.shape[1:]:
        return image
    return functional.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def _is_image(key: str, value: object) -> bool:
    return key.startswith(OBS_IMAGES) and isinstance(value, Tensor) and value.is_floating_point()


def _layout(sample: Mapping[str, Any]) -> np.dtype[Any]:
    fields: list[Any] = [(_CHECKSUM, "<u4")]
    for key, value in sample.items():
        if isinstance(value, str):
            fields.append((key, f"S{_TEXT_BYTES}"))
        else:
            kind = np.dtype(np.uint8) if _is_image(key, value) else value.numpy().dtype
            fields.append((key, kind, tuple(value.shape)))
    return np.dtype(fields)


def _pack(sample: Mapping[str, Any], layout: np.dtype[Any]) -> NDArray[Any] | None:
    """Return a record (1,) of `layout`, or None if the sample does not fit it."""
    record = np.zeros(1, layout)
    for key, value in sample.items():
        if isinstance(value, str):
            text = value.encode()
            if len(text) > _TEXT_BYTES or text.endswith(b"\0"):
                return None
            record[key][0] = text
        elif record[key].shape[1:] != tuple(value.shape):
            return None
        elif _is_image(key, value):
            record[key][0] = (value * 255).round().to(torch.uint8).numpy()
        else:
            record[key][0] = value.numpy()
    record[_CHECKSUM] = _checksum(record)
    return record


def _unpack(record: NDArray[Any]) -> dict[str, Any]:
    sample: dict[str, Any] = {}
    for key in record.dtype.names[1:]:  # type: ignore[index]
        value = record[key][0]
        if isinstance(value, bytes):
            sample[key] = value.decode()
        else:
            tensor = torch.from_numpy(value.copy())
            sample[key] = tensor.float() / 255 if tensor.dtype == torch.uint8 else tensor
    return sample


def _checksum(record: NDArray[Any]) -> int:
    return zlib.crc32(record.view(np.uint8)[record.dtype[_CHECKSUM].itemsize :])
