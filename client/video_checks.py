"""The doctor's look at the frames of a data set's videos."""

import json
from pathlib import Path

from client.check import Check, one_line
from federation.dataset_description import DatasetDescription
from federation.dataset_tables import read_episodes

__all__ = ["check_videos"]

_SAMPLED_EPISODES = 3


def check_videos(root: Path, description: DatasetDescription) -> list[Check]:
    """Decode the first and the last frame of a few episodes, of every camera."""
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
                text = f"{name} ({one_line(error)}); copy the file again or delete the episode"
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
        raise ValueError(one_line(error)) from None
    raise ValueError(f"no frame at {second:.3f} s")
