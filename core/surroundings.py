"""What `doctor` looks at around the studio: permissions, the port, fonts, the driver and the libraries that only GPUs need."""

from __future__ import annotations

import shutil
import socket
import subprocess
import uuid
from pathlib import Path

from core.words import Text
from core.workspace import Workspace

Found = tuple[str, Text, Text | None]
USUAL_PORT = 6006
# The oldest driver that runs programs of CUDA 12 (NVIDIA's table of minor version compatibility).
_OLDEST_DRIVER = 525
_FONT_SECONDS = 10.0


def look_at_folder(workspace: Workspace) -> Found:
    """Write, read and delete a small file, as every job does."""
    probe = workspace.cache / f".probe-{uuid.uuid4().hex[:8]}"
    try:
        probe.write_text("x", encoding="ascii")
        probe.unlink()
    except OSError as error:
        return ("error", Text("the workspace {root} cannot be written: {reason}", root=workspace.root, reason=error.strerror),
                Text("Set SWEETSPOT_HOME to a folder you may write, or use --workspace."))
    return "ok", Text("the workspace {root} can be written", root=workspace.root), None


def look_at_port(port: int = USUAL_PORT) -> Found:
    """Whether a server could listen; a studio that runs already is no fault."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return ("ok", Text("port {port} is taken: by a studio that runs already, or take another with `sweetspot studio --port`",
                               port=port), None)
    return "ok", Text("port {port} is free", port=port), None


def look_at_fonts() -> Found | None:
    """Chinese letters in pictures made here; a browser brings its own. None where nothing can tell."""
    program = shutil.which("fc-list")
    if program is None:
        return None
    try:
        done = subprocess.run([program, ":lang=zh", "family"], capture_output=True, text=True, timeout=_FONT_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    if done.stdout.strip():
        return "ok", Text("this machine has a font with Chinese letters"), None
    return ("warning", Text("this machine has no font with Chinese letters"),
            Text("Only a browser on this very machine needs one: `apt install fonts-noto-cjk`."))


def look_at_driver() -> Found | None:
    """The driver's version; None without one."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None
    try:
        version = str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError:
        return None
    finally:
        pynvml.nvmlShutdown()
    number = version.partition(".")[0]
    if number.isdecimal() and int(number) < _OLDEST_DRIVER:
        return ("error", Text("the NVIDIA driver {version} is too old for CUDA 12", version=version),
                Text("Install driver {oldest} or newer.", oldest=_OLDEST_DRIVER))
    return "ok", Text("NVIDIA driver {version}", version=version), None


def look_at_versions(versions: dict[str, str], lock: Path) -> Found | None:
    """Installed versions that differ from the tested ones; None without the list of those."""
    try:
        lines = lock.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    wanted = dict(line.split(";")[0].split()[0].split("==", 1) for line in lines if "==" in line and not line.startswith(("#", " ")))
    other = [f"{name} {number} ({wanted[name]})" for name, number in versions.items()
             if number != "-" and name in wanted and number.partition("+")[0] != wanted[name].partition("+")[0]]
    if not other:
        return "ok", Text("the packages have the tested versions"), None
    return ("warning", Text("other versions than the tested ones (in brackets): {names}", names=", ".join(other)),
            Text("Run `make setup`."))


def look_at_gpu_libraries(has_gpu: bool) -> Found | None:
    """What 4-bit weights and ZeRO need; only said where there is a GPU. Looked for on the disk, not imported."""
    if not has_gpu:
        return None
    import importlib.util

    spec = importlib.util.find_spec("bitsandbytes")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    if folder is not None and not any(folder.glob("libbitsandbytes_cuda*")):
        return ("warning", Text("bitsandbytes has no library for CUDA, so 4-bit and 8-bit weights will not load"),
                Text("Install it again: `pip install --force-reinstall bitsandbytes`."))
    if importlib.util.find_spec("deepspeed") is not None and shutil.which("nvcc") is None:
        return "ok", Text("DeepSpeed works without a CUDA compiler, except for offloading the optimizer"), None
    return "ok", Text("bitsandbytes and DeepSpeed find what they need"), None


def look_around(workspace: Workspace, versions: dict[str, str], has_gpu: bool, lock: Path) -> list[Found]:
    """Everything above that can be told here."""
    found = [look_at_folder(workspace), look_at_port(), look_at_fonts(), look_at_driver(), look_at_versions(versions, lock),
             look_at_gpu_libraries(has_gpu)]
    return [finding for finding in found if finding is not None]
