"""The report's section on closed-loop evaluation: success rates with intervals, and videos of the newest."""

import base64
import html
from pathlib import Path
from typing import Any

__all__ = ["simulation_section"]


def simulation_section(metrics: dict[str, Any], folder: Path) -> str:
    """HTML, with the videos in it, or "" if no policy of this run drove the simulated arm."""
    simulated = metrics.get("simulated", [])
    if not simulated:
        return ""
    rows = [
        "<tr><th>weights</th><th>success rate</th><th>95 % interval</th><th>mean return</th>"
        "<th>episodes</th></tr>"
    ]
    for entry in simulated:
        low, high = entry["interval"]
        name = "before training" if entry["round"] == 0 else f"round {entry['round']}"
        rows.append(
            f"<tr><td>{name}</td><td>{entry['success_rate']:.0%}</td><td>{low:.0%} to {high:.0%}</td>"
            f"<td>{entry['mean_return']:.2f}</td><td>{entry['episodes']}</td></tr>"
        )
    newest = simulated[-1]
    rows.append(
        f"<tr><td>scripted expert</td><td>{newest['expert_success_rate']:.0%}</td><td></td><td></td>"
        f"<td>{newest['episodes']}</td></tr>"
    )
    videos = sorted((folder / "simulation" / f"round_{newest['round']}").glob("eval_episode_*.mp4"))
    played = "".join(
        f'<video controls muted loop width=300 src="data:video/mp4;base64,{_base64(path)}"></video> '
        for path in videos
    )
    caption = f"The policy after round {html.escape(str(newest['round']))}: cameras top and wrist."
    return (
        "<h2>Does it do the task?</h2><p class=quiet>The policy drives the simulated SO-101; every row has "
        "the same seeds. The return is how far an episode came, 1 for a success.</p>"
        f'<div class="wide"><table>{"".join(rows)}</table></div>'
        + (f"<figure>{played}<figcaption>{caption}</figcaption></figure>" if played else "")
    )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
