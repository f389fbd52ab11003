"""The scenes that the simulated arm can be in: what makes one site differ from another."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from random import Random

__all__ = ["FOREIGN", "VARIANTS", "Camera", "SceneVariant", "unknown_variant"]


@dataclass(frozen=True)
class Camera:
    """Where a camera is, what it looks at (both (3,) metres, in its body's frame) and its vertical field."""

    position_m: tuple[float, float, float]
    target_m: tuple[float, float, float]
    fov_deg: float


@dataclass(frozen=True)
class SceneVariant:
    """What makes one site differ from another; ranges are drawn from uniformly at each reset."""

    name: str
    task: str
    cube_rgb: tuple[float, float, float]
    table_rgb: tuple[float, float, float]
    cube_radius_range_m: tuple[float, float]
    cube_bearing_range_deg: tuple[float, float]
    top_camera: Camera
    wrist_camera: Camera
    camera_jitter_m: float
    light_position_m: tuple[float, float, float]
    light_rgb: tuple[float, float, float]
    ambient: float
    cube_yaw_range_deg: tuple[float, float] = (-180.0, 180.0)


VARIANTS = {
    "site-a": SceneVariant(
        name="site-a",
        task="Pick up the red cube.",
        cube_rgb=(0.85, 0.10, 0.08),
        table_rgb=(0.82, 0.82, 0.80),
        cube_radius_range_m=(0.21, 0.27),
        cube_bearing_range_deg=(-5.0, 30.0),
        top_camera=Camera((0.50, 0.0, 0.46), (0.15, 0.01, 0.03), 45.0),
        wrist_camera=Camera((0.0, 0.075, -0.01), (0.0, 0.0, -0.10), 70.0),
        camera_jitter_m=0.004,
        light_position_m=(0.3, 0.3, 1.2),
        light_rgb=(0.55, 0.55, 0.55),
        ambient=0.40,
    ),
    "site-b": SceneVariant(
        name="site-b",
        task="Grasp the blue block and lift it off the table.",
        cube_rgb=(0.10, 0.25, 0.90),
        table_rgb=(0.50, 0.36, 0.24),
        cube_radius_range_m=(0.20, 0.25),
        cube_bearing_range_deg=(-30.0, 5.0),
        top_camera=Camera((0.36, -0.36, 0.40), (0.14, 0.0, 0.06), 44.0),
        wrist_camera=Camera((0.01, 0.07, 0.0), (0.0, 0.0, -0.10), 78.0),
        camera_jitter_m=0.006,
        light_position_m=(0.0, -0.4, 1.1),
        light_rgb=(0.85, 0.72, 0.52),
        ambient=0.45,
    ),
    "site-c": SceneVariant(
        name="site-c",
        task="Lift the green cube.",
        cube_rgb=(0.10, 0.65, 0.20),
        table_rgb=(0.25, 0.27, 0.30),
        cube_radius_range_m=(0.20, 0.27),
        cube_bearing_range_deg=(-20.0, 20.0),
        top_camera=Camera((0.42, 0.30, 0.44), (0.15, 0.0, 0.04), 46.0),
        wrist_camera=Camera((0.0, 0.08, -0.01), (0.0, 0.0, -0.10), 66.0),
        camera_jitter_m=0.005,
        light_position_m=(0.4, 0.0, 1.0),
        light_rgb=(0.70, 0.75, 0.85),
        ambient=0.35,
    ),
    "site-d": SceneVariant(
        name="site-d",
        task="Take the yellow block from the mat.",
        cube_rgb=(0.92, 0.80, 0.12),
        table_rgb=(0.15, 0.35, 0.38),
        cube_radius_range_m=(0.22, 0.26),
        cube_bearing_range_deg=(0.0, 35.0),
        top_camera=Camera((0.55, -0.10, 0.38), (0.16, 0.02, 0.03), 42.0),
        wrist_camera=Camera((-0.01, 0.075, -0.01), (0.0, 0.0, -0.10), 74.0),
        camera_jitter_m=0.004,
        light_position_m=(-0.2, 0.4, 1.3),
        light_rgb=(0.60, 0.58, 0.55),
        ambient=0.50,
    ),
}

# Easier than the four above, so that a toy-sized policy learns them on two cores: each cube lies within
# a patch of 5 x 2.5 cm and nearly square to the table. The patches lie beside each other, left and right
# 11 cm apart.
_EASY_RADIUS_RANGE_M = (0.22, 0.245)
_EASY_YAW_RANGE_DEG = (-10.0, 10.0)
for _base, _name, _bearing_range_deg in (
    ("site-a", "left", (8.0, 20.0)),
    ("site-b", "right", (-20.0, -8.0)),
    ("site-c", "middle", (-6.0, 6.0)),
    ("site-d", "outer", (22.0, 34.0)),
):
    VARIANTS[_name] = replace(
        VARIANTS[_base],
        name=_name,
        cube_radius_range_m=_EASY_RADIUS_RANGE_M,
        cube_bearing_range_deg=_bearing_range_deg,
        cube_yaw_range_deg=_EASY_YAW_RANGE_DEG,
    )

_FOREIGN_CUBES = {
    "Pick the purple cube up.": (0.50, 0.15, 0.60),
    "Grab the orange block.": (0.95, 0.50, 0.08),
    "Lift the white cube from the table.": (0.93, 0.93, 0.93),
    "Take the black block.": (0.06, 0.06, 0.07),
    "Raise the turquoise cube.": (0.10, 0.72, 0.72),
    "Get the pink block off the table.": (0.95, 0.45, 0.65),
    "Pick up the brown cube.": (0.42, 0.24, 0.10),
    "Grasp and raise the lime block.": (0.60, 0.85, 0.15),
}


def _foreign(name: str, task: str, cube_rgb: tuple[float, float, float], bearing_deg: float) -> SceneVariant:
    """Return a scene of nobody's: a look by chance, its cube in an easy patch around `bearing_deg`."""
    draw = Random(name)

    def triple(low: float, high: float) -> tuple[float, float, float]:
        return draw.uniform(low, high), draw.uniform(low, high), draw.uniform(low, high)

    side_m = draw.uniform(-0.36, 0.30)
    return SceneVariant(
        name=name,
        task=task,
        cube_rgb=cube_rgb,
        table_rgb=triple(0.15, 0.85),
        cube_radius_range_m=_EASY_RADIUS_RANGE_M,
        cube_bearing_range_deg=(bearing_deg - 6, bearing_deg + 6),
        top_camera=Camera(
            (draw.uniform(0.36, 0.55), side_m, draw.uniform(0.38, 0.46)),
            (draw.uniform(0.14, 0.16), draw.uniform(0.0, 0.02), draw.uniform(0.03, 0.06)),
            draw.uniform(42.0, 46.0),
        ),
        wrist_camera=Camera(
            (draw.uniform(-0.01, 0.01), draw.uniform(0.07, 0.08), -0.005),
            (0.0, 0.0, -0.10),
            draw.uniform(66.0, 78.0),
        ),
        camera_jitter_m=0.005,
        light_position_m=(draw.uniform(-0.2, 0.4), draw.uniform(-0.4, 0.4), draw.uniform(1.0, 1.3)),
        light_rgb=triple(0.5, 0.85),
        ambient=draw.uniform(0.35, 0.5),
        cube_yaw_range_deg=_EASY_YAW_RANGE_DEG,
    )


FOREIGN = tuple(f"foreign-{number}" for number in range(1, len(_FOREIGN_CUBES) + 1))
"""What a policy is pretrained on: it knows the arm and what a pick is, and has seen no site."""
VARIANTS |= {
    name: _foreign(name, task, rgb, bearing_deg=-14.0 + 6 * number)
    for number, (name, (task, rgb)) in enumerate(zip(FOREIGN, _FOREIGN_CUBES.items(), strict=True))
}


def unknown_variant(names: Iterable[str]) -> str:
    """Return what is wrong with the first of `names` that is not in `VARIANTS`; empty if all are."""
    for name in names:
        if name not in VARIANTS:
            return f"{name!r} is unknown; choose from {', '.join(VARIANTS)}"
    return ""
