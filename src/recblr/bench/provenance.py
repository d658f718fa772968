"""What a measured figure stands beside."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch


def provenance(command: str) -> dict[str, Any]:
    """Command, date, commit, hardware and versions; with the GPU and CUDA's version where one is."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    gpu = {}
    if torch.cuda.is_available():
        gpu["gpu"] = torch.cuda.get_device_name()
        versions["cuda"] = str(torch.version.cuda)
        versions["triton"] = version("triton")
    return {
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "commit": found.stdout.strip() or None,
        "hardware": names[0] if names else platform.processor(),
        **gpu,
        "threads": torch.get_num_threads(),
        "versions": versions,
    }
