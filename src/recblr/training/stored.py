"""Tensors in files: one file of one process, or a folder to which several processes write their parts.

Either can be read by any number of processes. Tables that are divided over the processes (see
:mod:`recblr.ranks`) are divided anew when they are read. A folder is written by
``torch.distributed.checkpoint``, whose format is not promised to outlive its version.
"""

import json
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, distributed

from recblr.files import new_file
from recblr.ranks import Ranks

SUFFIX = ".safetensors"
_ABOUT = "about.json"

IsDivided = Callable[[str, int], bool]
"""Whether a tensor of this name and number of axes is divided by rows."""


def exists(path: Path) -> bool:
    """Whether there are tensors at ``path``, in a file or a folder. ``path`` has no suffix."""
    return path.with_suffix(SUFFIX).exists() or _folder(path) is not None


def remove(path: Path) -> None:
    """Remove what :func:`write` has written."""
    path.with_suffix(SUFFIX).unlink(missing_ok=True)
    for folder in (path, path.with_suffix(".old"), path.with_suffix(".writing")):
        shutil.rmtree(folder, ignore_errors=True)


def write(
    path: Path, tensors: Mapping[str, Tensor], about: Any, is_divided: IsDivided, ranks: Ranks
) -> None:
    """Write tensors and a JSON value ``about`` them, complete or not at all."""
    if ranks.alone:
        with new_file(path.with_suffix(SUFFIX)) as temporary:
            save_file(dict(tensors), temporary, {"about": json.dumps(about)})
        shutil.rmtree(path, ignore_errors=True)
        return
    from torch.distributed.checkpoint.state_dict_saver import save

    writing, old = path.with_suffix(".writing"), path.with_suffix(".old")
    if ranks.first:
        shutil.rmtree(writing, ignore_errors=True)
    distributed.barrier()
    placed = {
        name: _placed(tensor, ranks) if is_divided(name, tensor.dim()) else tensor
        for name, tensor in tensors.items()
    }
    save(placed, checkpoint_id=writing)
    if ranks.first:
        (writing / _ABOUT).write_text(json.dumps(about), encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if path.exists():
            path.rename(old)
        writing.rename(path)
        shutil.rmtree(old, ignore_errors=True)
        path.with_suffix(SUFFIX).unlink(missing_ok=True)
    distributed.barrier()


def read(path: Path, is_divided: IsDivided, ranks: Ranks) -> tuple[dict[str, Tensor], Any]:
    """The tensors, of divided ones the rows of this process, and the value about them."""
    folder = _folder(path)
    if folder is not None:
        return _read_folder(folder, is_divided, ranks)
    tensors = {}
    with safe_open(path.with_suffix(SUFFIX), "pt") as file:
        about = json.loads(file.metadata()["about"])
        for name in file.keys():  # noqa: SIM118 - not a mapping
            part = file.get_slice(name)
            if is_divided(name, len(part.get_shape())) and not ranks.alone:
                tensors[name] = part[ranks.rows(part.get_shape()[0])]
            else:
                tensors[name] = file.get_tensor(name)
    return tensors, about


def _read_folder(
    folder: Path, is_divided: IsDivided, ranks: Ranks
) -> tuple[dict[str, Tensor], Any]:
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load

    about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
    tensors: dict[str, Any] = {}
    stored = FileSystemReader(folder).read_metadata().state_dict_metadata
    for name, description in stored.items():
        assert isinstance(description, TensorStorageMetadata)
        size, dtype = list(description.size), description.properties.dtype
        if is_divided(name, len(size)) and not ranks.alone:
            rows = ranks.rows(size[0])
            own = torch.empty(rows.stop - rows.start, *size[1:], dtype=dtype)
            tensors[name] = _placed(own, ranks)
        else:
            tensors[name] = torch.empty(size, dtype=dtype)
    with warnings.catch_warnings():  # about one process, which is meant
        warnings.simplefilter("ignore")
        load(tensors, checkpoint_id=folder, no_dist=ranks.alone)
    return {
        name: getattr(tensor, "_local_tensor", tensor) for name, tensor in tensors.items()
    }, about


def _placed(tensor: Tensor, ranks: Ranks) -> Any:
    """The rows of this process as a part of a table."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard

    size = ranks.bounds(len(tensor))[-1], *tensor.shape[1:]
    stride = torch.empty(size, device="meta").stride()
    mesh = init_device_mesh(tensor.device.type, (ranks.count,))
    return DTensor.from_local(
        tensor, mesh, [Shard(0)], run_check=False, shape=torch.Size(size), stride=stride
    )


def _folder(path: Path) -> Path | None:
    """The complete folder; the one before, if a process ended between two renamings."""
    for folder in (path, path.with_suffix(".old")):
        if (folder / _ABOUT).exists():
            return folder
    return None
