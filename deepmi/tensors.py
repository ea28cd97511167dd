"""Files of tensors, written whole and read without running code or taking more memory than their size lets expect."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import IO

import torch

from deepmi.process import UserError
from deepmi.storage import write_atomically

MOST_UNPACKED = 4  # times its size that a file of tensors may take in memory; torch packs nothing
TENSOR_TYPES = r"collections\.OrderedDict|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)|torch\.\w+Storage"
LEGACY_PICKLES = 5  # one after the other, before the numbers: magic number, version, system, content, keys
PLAIN = (str, int, float, type(None))


def save_tensors(content: object, path: Path) -> None:
    """`torch.save` in one step; the same content gives the same bytes for any file name."""

    # By way of memory: torch writes a path's name into the archive, and hides a full disk behind an error of its own.
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with write_atomically(path) as temporary:
        temporary.write_bytes(buffer.getbuffer())


def load_tensors(path: Path) -> object:
    """`torch.load` onto the CPU that runs no code and takes no more memory than the file's size lets expect.

    Returns:
        Dense tensors of real numbers and plain values, in dicts, lists and tuples.
    Raises:
        UserError: the file is missing, damaged, holds anything else, or claims to hold more than its size allows.
    """

    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is said of odd files is told below
            _refuse_foreign_types(path)
            content = torch.load(path, map_location="cpu", weights_only=True)
    except UserError:
        raise
    except pickle.UnpicklingError:
        raise UserError(f"{path}: damaged, not a checkpoint that torch can read; download or train it again.") from None
    except MemoryError:
        raise UserError(f"{path}: damaged, it claims more memory than this machine has.") from None
    except Exception as error:  # torch raises many kinds for a damaged archive
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise UserError(
            f"{path}: damaged, not a checkpoint that torch can read ({reason}); download or train it again."
        ) from None
    _refuse_unplain(path, content)
    return content


def _is_archive(path: Path) -> bool:
    """Whether torch takes a file for an archive, and not for one of its older format: by the first four bytes."""
    with path.open("rb") as stream:
        return stream.read(4) == b"PK\x03\x04"


def _pickles_of(path: Path) -> list[IO[bytes]]:
    """The pickled parts of a file of tensors, once its archive, if it is one, has been looked at.

    torch looks neither at the checksums of an archive's parts nor at how far it unpacks.

    Raises:
        UserError: a part is damaged, or all of them unpack to many times the file's size.
        zipfile.BadZipFile, and others: it is no archive that can be read.
    """
    if not _is_archive(path):
        return [io.BytesIO(path.read_bytes())] * LEGACY_PICKLES
    with zipfile.ZipFile(path) as archive:
        unpacked, size = sum(part.file_size for part in archive.infolist()), path.stat().st_size
        if unpacked > MOST_UNPACKED * size:
            raise UserError(f"{path}: refused, its {size:,} bytes unpack to {unpacked:,}; torch packs nothing.")
        if damaged := archive.testzip():
            raise UserError(f"{path}: damaged ({damaged} fails its checksum); download or train it again.")
        return [io.BytesIO(archive.read(name)) for name in archive.namelist() if name.endswith("data.pkl")]


def _refuse_foreign_types(path: Path) -> None:
    """Raise `UserError` where a file of tensors asks for anything else than tensors and dicts.

    torch would let some of it pass that runs no code, but takes memory: `bytearray(10**11)` is a line.

    Raises:
        Exception: of many kinds, where it is damaged.
    """

    for stream in _pickles_of(path):
        for operation, argument, _ in pickletools.genops(stream):
            if "GLOBAL" in operation.name or operation.name in ("INST", "EXT1", "EXT2", "EXT4"):
                name = str(argument).replace(" ", ".")
                if operation.name != "GLOBAL" or not re.fullmatch(TENSOR_TYPES, name):
                    raise UserError(
                        f"{path}: refused, since it asks for {name}; only tensors and plain values are read, anything "
                        "else could run code."
                    )


def _refuse_unplain(path: Path, content: object) -> None:
    """Raise `UserError` unless it is of tensors and plain values that the file has room for."""

    room = MOST_UNPACKED * path.stat().st_size
    values, claimed, waiting = 0, 0, [content]
    while waiting:
        value = waiting.pop()
        inner: tuple = ()
        if isinstance(value, torch.Tensor):
            real = value.layout == torch.strided and not (value.is_complex() or value.is_quantized)
            if not real or value.device.type != "cpu":
                raise UserError(f"{path}: holds a tensor of an odd kind; expected dense ones of real numbers.")
            claimed += value.numel() * value.element_size()
        elif isinstance(value, dict):
            inner = (*value.keys(), *value.values(), getattr(value, "_metadata", None))
        elif isinstance(value, (list, tuple)):
            inner = tuple(value)
        elif not isinstance(value, PLAIN):
            raise UserError(f"{path}: holds a {type(value).__name__}; expected tensors and plain values.")
        values += 1 + len(inner)  # what is there twice counts twice, or looking through a short file would never end
        if max(values, claimed) > room:
            raise UserError(f"{path}: refused, it claims to hold more than its {path.stat().st_size:,} bytes can.")
        waiting += inner
