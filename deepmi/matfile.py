"""One variable of a MATLAB v5 file: read without trust, written with the same bytes each time.

scipy reads these files too, but a stranger's file can crash the process in it: of 100,000 damaged feature files, scipy
1.17.1 died of SEED_COUNT (segmentation fault or bus error). The count is printed by
`python -m benchmarks.fuzz --targets scipy_mat --inputs 100000`.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import savemat

from deepmi.process import UserError
from deepmi.storage import write_atomically

# Types of a data element and classes of a real matrix as numpy types (MAT-File Format, tables 1-1 and 1-3)
ELEMENT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
MI_INT32, MI_MATRIX, MI_COMPRESSED = 5, 14, 15
COMPLEX = 0x800  # a flag of a matrix
HEADER = 128  # bytes before the first element
LARGEST_MAT = 2**26  # bytes of a file, and of its variables when unpacked; a feature vector has about 50 KB


def _open_without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # a named pipe would wait for its writer


def read_mat(path: Path | str, key: str) -> NDArray:
    """One numeric variable of a MATLAB v5 file, as stored.

    Args:
        path: the file.
        key: name of the variable.
    Raises:
        UserError: the file is missing, empty, damaged or too large, or has no such variable of real numbers.
    Source: MAT-File Format (MathWorks), chapter "Level 5 MAT-Files".
    """
    try:
        with open(path, "rb", buffering=0, opener=_open_without_waiting) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > LARGEST_MAT:
                raise UserError(f"{path}: {size:,} bytes; expected one feature vector.")
            data = bytearray(size)
            stream.readinto(data)
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}).") from None
    if not data:
        raise UserError(f"{path}: empty (0 bytes); extract it again.")
    if data.startswith((b"MATLAB 7.3", b"\x89HDF")):
        raise UserError(f"{path}: MATLAB v7.3 (HDF5); save it as v5 (`save -v6` or `-v7` in MATLAB).")
    found = []
    try:
        for name, value in _variables(memoryview(data)):
            if name == key and value is not None:
                return value
            found.append(name if value is not None else f"{name} (not a matrix of real numbers)")
    except (ValueError, KeyError, struct.error, zlib.error) as error:
        raise UserError(f"{path}: damaged, not a MATLAB v5 file ({error}); extract it again.") from None
    raise UserError(f"{path}: no matrix {key!r} of real numbers; found {', '.join(found) or 'nothing'}.")


def _variables(data: memoryview) -> Iterator[tuple[str, NDArray | None]]:
    """Name and value of each variable; the value is None if it is not a matrix of real numbers.

    Raises:
        ValueError, KeyError, struct.error, zlib.error: the bytes are not those of a v5 file.
    """
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(bytes(data[HEADER - 4 : HEADER]))
    if order is None:
        raise ValueError("no version in its header")
    place, room = HEADER, LARGEST_MAT
    while place < len(data):
        kind, content, place = _element(data, place, order)
        if kind == MI_COMPRESSED:
            unpacker = zlib.decompressobj()
            content = memoryview(unpacker.decompress(content, room))
            if not unpacker.eof or len(content) >= room:
                raise ValueError("its compressed part is cut off or too large")
            room -= len(content)
            kind, content, _ = _element(content, 0, order)
        if kind == MI_MATRIX:
            yield _matrix(content, order)


def _element(data: memoryview, place: int, order: str) -> tuple[int, memoryview, int]:
    """Type and content of the data element at a place, and the place of the next one."""
    kind, size = struct.unpack_from(f"{order}2I", data, place)
    if kind >> 16:  # up to four bytes lie within the tag; the upper half of the type is their number
        kind, size, start, following = kind & 0xFFFF, kind >> 16, place + 4, place + 8
    else:
        start = place + 8
        following = start + (size if kind == MI_COMPRESSED else -(-size // 8) * 8)
    if start + size > min(len(data), following):
        raise ValueError("cut off")
    return kind, data[start : start + size], following


def _matrix(content: memoryview, order: str) -> tuple[str, NDArray | None]:
    """Name and value of a variable; the value is None if it is not a matrix of real numbers."""
    _, flags, place = _element(content, 0, order)
    (flags,) = struct.unpack(f"{order}I4x", flags)
    kind, shape, place = _element(content, place, order)
    if kind != MI_INT32:  # MATLAB's objects have no shape
        return "an object", None
    shape = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    _, name, place = _element(content, place, order)
    name = bytes(name).decode("latin1")
    target = MATRIX_CLASSES.get(flags & 0xFF)
    if target is None or flags & COMPLEX:
        return name, None
    kind, numbers, _ = _element(content, place, order)
    values = stored = np.frombuffer(numbers, order + ELEMENT_TYPES[kind])
    if stored.dtype != target:  # MATLAB stores doubles that are small integers as integers
        with np.errstate(over="ignore", invalid="ignore"):
            values = stored.astype(target)
        if not np.array_equal(values, stored, equal_nan=True):
            raise ValueError("numbers that its class can't hold")
    if min(shape) < 0:
        raise ValueError("a negative size")
    return name, values.reshape(shape, order="F")


def mat_bytes(key: str, value: NDArray) -> bytes:
    """One variable as a MATLAB v5 file; the same value gives the same bytes.

    Source: scipy writes the current time into the first 116 bytes, a description; it is replaced here.
    """
    stream = io.BytesIO()
    savemat(stream, {key: value})
    return b"MATLAB 5.0 MAT-file, written by DeepMI".ljust(116) + stream.getvalue()[116:]


def write_mat(path: Path, key: str, value: NDArray) -> None:
    """Write one variable as MATLAB v5, in one step."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(mat_bytes(key, value))
