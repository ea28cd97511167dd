"""Files of tensors: written whole, read without running code or taking more memory than their size justifies."""

from __future__ import annotations

import io
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO

import torch

from deepmi.process import UserError
from deepmi.storage import write_atomically

MOST_UNPACKED = 4  # a file may take this many times its size in memory; torch does not compress
TENSOR_TYPES = r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.\w+Storage"
LEGACY_PICKLES = 5  # in torch's older format, before the numbers: magic number, version, system, content, keys
PLAIN = (str, int, float, type(None))


def save_tensors(content: object, path: Path) -> None:
    """`torch.save` in one step; the same content gives the same bytes under any file name."""
    # Through memory: torch writes the name of a path into the archive, and hides the error of a full disk.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with write_atomically(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> object:
    """`torch.load` onto the CPU, for files from strangers.

    Returns:
        Dense tensors of real numbers and plain values, in dicts, lists and tuples.
    Raises:
        UserError: the file is missing or damaged, holds anything else, or claims more memory than its size justifies.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about files that are refused below
            for stream in _pickles(path):
                _refuse_foreign_types(path, stream)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except Exception as error:  # torch raises many kinds for a damaged file
        reason = str(error).partition("\n")[0][:120] or type(error).__name__
        raise UserError(
            f"{path}: damaged, not a checkpoint that torch can read ({reason}); download or train it again."
        ) from None
    _refuse_large_or_foreign_values(path, content)
    return content


def _pickles(path: Path) -> list[IO[bytes]]:
    """The pickled parts of a file of tensors, after a check of its archive.

    torch checks neither the checksums of an archive nor the size to which it unpacks.

    Raises:
        UserError: a part is damaged, or the archive unpacks to many times the size of the file.
    """
    with path.open("rb") as stream:
        is_archive = stream.read(4) == b"PK\x03\x04"  # this is how torch recognises one
    if not is_archive:
        return [io.BytesIO(path.read_bytes())] * LEGACY_PICKLES
    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(part.file_size for part in archive.infolist()), path.stat().st_size
        if unpacked > MOST_UNPACKED * size:
            raise UserError(f"{path}: refused, its {size:,} bytes unpack to {unpacked:,}; torch does not compress.")
        if damaged := archive.testzip():
            raise UserError(f"{path}: damaged (wrong checksum of {damaged}); download or train it again.")
        return [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("data.pkl")]


def _refuse_foreign_types(path: Path, stream: IO[bytes]) -> None:
    """Raise `UserError` if a pickle names anything but tensors and dicts.

    `weights_only` runs no code, but admits some types that take memory: `bytearray(10**11)` is one line.
    """
    for operation, argument, _ in pickletools.genops(stream):
        if "GLOBAL" in operation.name or operation.name in ("INST", "EXT1", "EXT2", "EXT4"):
            name = str(argument).replace(" ", ".")
            if operation.name != "GLOBAL" or not re.fullmatch(TENSOR_TYPES, name):
                raise UserError(
                    f"{path}: refused, it asks for {name}; anything but tensors and plain values could run code."
                )


def _refuse_large_or_foreign_values(path: Path, content: object) -> None:
    """Raise `UserError` unless the content is tensors and plain values, together not much larger than the file."""
    size = path.stat().st_size
    room, waiting = MOST_UNPACKED * size, [content]
    while waiting:
        value = waiting.pop()
        room -= 1  # a value that is referred to twice counts twice, or a short file could keep this loop busy forever
        if isinstance(value, torch.Tensor):
            if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.device.type != "cpu":
                raise UserError(f"{path}: holds an unusual kind of tensor; expected dense ones of real numbers.")
            room -= value.numel() * value.element_size()  # a view may repeat one number in memory a billion times
        elif isinstance(value, dict):
            waiting += (*value.keys(), *value.values(), getattr(value, "_metadata", None))
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif not isinstance(value, PLAIN):
            raise UserError(f"{path}: holds a {type(value).__name__}; expected tensors and plain values.")
        if room < 0:
            raise UserError(f"{path}: refused, it claims to hold more than its {size:,} bytes can.")
