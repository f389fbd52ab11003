"""Pictures of a video in the order of time, each decoded once: LeRobot opens and seeks for every one.

The pictures are those that LeRobot's decoder gives, bit for bit. That holds where a picture depends on no
other beyond the key frame before it; of HEVC, whose groups of pictures may be open, it need not hold, so a
caller leaves such videos to LeRobot (`is_closed`).
"""

from collections import deque
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import torch
from lerobot.datasets.video_utils import FrameTimestampError
from torch import Tensor

__all__ = ["ForwardVideo"]

_CLOSED = ("h264", "av1", "mpeg4")  # codecs, as LeRobot and common recorders set them up
_SEEK_SECONDS = 2.0  # a picture further ahead is sought


class ForwardVideo:
    """An open video that is read forward.

    Args:
        tolerance_seconds: between the time that is asked for and that of its picture, as LeRobot has it.
    """

    def __init__(self, path: Path, tolerance_seconds: float) -> None:
        self.path, self._tolerance = path, tolerance_seconds
        self._container = av.open(str(path))
        self._stream = self._container.streams.video[0]
        self._tick = self._stream.time_base or Fraction(1, av.time_base)  # seconds
        self.is_closed = self._stream.codec_context.codec.canonical_name in _CLOSED
        self._recent: deque[av.VideoFrame] = deque(maxlen=2)  # the next time may lie nearer to the former
        self._frames: Iterator[av.VideoFrame] = iter(())

    def picture(self, seconds: float) -> Tensor:
        """Return the picture at `seconds`, (3, H, W) fp32 in [0, 1].

        Raises:
            FrameTimestampError: the video has none at that time.
            av.FFmpegError: it is damaged there.
        """
        if not self._recent or not 0 <= seconds - self._time(self._recent[-1]) < _SEEK_SECONDS:
            self._seek(seconds)
        while not self._recent or self._time(self._recent[-1]) < seconds:
            if (frame := next(self._frames, None)) is None:
                break
            if frame.pts is not None:
                self._recent.append(frame)
        nearest = min(self._recent, key=lambda frame: abs(self._time(frame) - seconds), default=None)
        # In fp32, as LeRobot compares them.
        if nearest is None or not self._distance(nearest, seconds) < self._tolerance:
            raise FrameTimestampError(f"{self.path}: has no picture at {seconds:.4f} s")
        picture = torch.from_numpy(nearest.to_ndarray(format="rgb24"))
        return picture.permute(2, 0, 1).contiguous().float() / 255

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _seek(self, seconds: float) -> None:
        """Go to the key frame that LeRobot goes to for the picture at `seconds`."""
        self._recent.clear()
        offset = round(seconds / self._tick) - 1
        self._container.seek(offset, backward=True, any_frame=False, stream=self._stream)
        self._frames = self._container.decode(self._stream)

    def _time(self, frame: av.VideoFrame) -> float:
        return float(frame.pts * self._tick)

    def _distance(self, frame: av.VideoFrame, seconds: float) -> float:
        return float((torch.tensor(seconds) - torch.tensor(self._time(frame))).abs())
