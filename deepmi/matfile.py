"""One variable of a MATLAB v5 file, read without trust and written with the same bytes each time."""

from __future__ import annotations

import io
import math
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

# Types of a MATLAB v5 data element and classes of a real matrix, as numpy calls them (MAT-File Format, tables 1-1, 1-3)
ELEMENT_TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
MATRIX_CLASSES = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
MI_INT8, MI_INT32, MI_UINT32, MI_MATRIX, MI_COMPRESSED = 1, 5, 6, 14, 15
COMPLEX = 0x800  # among the flags of a matrix
MAT_HEADER = 128  # bytes before the first element
LARGEST_MAT = 2**26  # bytes of a file or a variable; a vector of features has some 50 KB


class _Damaged(Exception):
    """What is wrong with the bytes of a .mat file."""


def _without_waiting(path: str, flags: int) -> int:
    """Open a file; a pipe of that name would otherwise wait for its writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def read_mat(path: Path, key: str) -> NDArray:
    """One numeric variable of a MATLAB v5 file.

    Args:
        path: the file.
        key: the variable's name.
    Returns:
        The variable as stored.
    Raises:
        UserError: missing, empty, damaged, without the key, too large, or not numeric.
    Source: MAT-File Format (MathWorks), chapter "Level 5 MAT-Files". scipy's reader takes several times as long over
        a feature file, and damaged bytes can crash the process in it.
    """
    try:
        with open(path, "rb", buffering=0, opener=_without_waiting) as stream:
            size = os.fstat(stream.fileno()).st_size
            if size > LARGEST_MAT:
                raise UserError(f"{path}: {size:,} bytes; expected one vector of features.")
            data = np.empty(size, np.uint8)
            whole = stream.readinto(data) == size
    except OSError as error:
        raise UserError(f"{path}: can't be read ({error.strerror}).") from None
    if not size:
        raise UserError(f"{path}: empty (0 bytes); extract it again.")
    others = []
    try:
        for name, value in _variables(memoryview(data)) if whole else ():
            if name != key:
                others.append(name)
            elif value is None:
                raise UserError(f"{path}: variable {key!r} is not a matrix of real numbers.")
            else:
                return value
    except _Damaged as error:
        raise UserError(f"{path}: {error}") from None
    raise UserError(f"{path}: no variable {key!r}; found {', '.join(others) or 'nothing'}.")


def _variables(data: memoryview) -> Iterator[tuple[str, NDArray | None]]:
    """Name and value of each variable of a file; None if it is not a matrix of real numbers.

    Raises:
        _Damaged: the bytes are not those of a v5 file.
    """
    if bytes(data[:10]) == b"MATLAB 7.3" or bytes(data[:4]) == b"\x89HDF":
        raise _Damaged("MATLAB v7.3 (HDF5); save it as v5 (`save -v6` or `-v7` in MATLAB).")
    order = {b"\x00\x01IM": "<", b"\x01\x00MI": ">"}.get(bytes(data[124:MAT_HEADER]))
    if order is None:
        raise _damaged_at("no version in its header")
    place, room = MAT_HEADER, LARGEST_MAT
    while place < len(data):
        kind, content, place = _element(data, place, order)
        if kind == MI_COMPRESSED:
            unpacked = _inflate(content, room)
            room -= len(unpacked)
            kind, content, _ = _element(unpacked, 0, order)
        if kind == MI_MATRIX:
            yield _matrix(content, order)


def _damaged_at(what: str) -> _Damaged:
    return _Damaged(f"damaged, not a MATLAB v5 file ({what}); extract it again.")


def _element(data: memoryview, place: int, order: str) -> tuple[int, memoryview, int]:
    """Type and content of the data element at a place, and the place of the next."""
    if place + 8 > len(data):
        raise _damaged_at("cut off within a tag")
    kind, size = struct.unpack_from(f"{order}2I", data, place)
    if kind >> 16:  # up to four bytes stand within the tag, their number in the type's upper half
        kind, size, start, following = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        if size > 4:
            raise _damaged_at("a tag that contradicts itself")
    else:
        start = place + 8
        following = start + (size if kind == MI_COMPRESSED else -(-size // 8) * 8)
    if start + size > len(data):
        raise _damaged_at("cut off")
    return kind, data[start : start + size], following


def _inflate(content: memoryview, room: int) -> memoryview:
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(content, max(room, 1))
    except zlib.error:
        raise _damaged_at("its compressed part can't be unpacked") from None
    if unpacker.unconsumed_tail or not unpacker.eof:
        raise _damaged_at("its compressed part is cut off or too large")
    return memoryview(unpacked)


def _matrix(content: memoryview, order: str) -> tuple[str, NDArray | None]:
    """Name and value of a matrix; None for one that is not of real numbers."""
    kind, flags, place = _element(content, 0, order)
    if kind != MI_UINT32 or len(flags) != 8:
        raise _damaged_at("a matrix without flags")
    (flags,) = struct.unpack_from(f"{order}I", flags)
    kind, shape, place = _element(content, place, order)
    if kind != MI_INT32 or len(shape) % 4:  # an object of MATLAB's has none
        return "", None
    shape = struct.unpack(f"{order}{len(shape) // 4}i", shape)
    kind, name, place = _element(content, place, order)
    if kind != MI_INT8:
        raise _damaged_at("a matrix without a name")
    name = bytes(name).decode("latin1")
    target = MATRIX_CLASSES.get(flags & 0xFF)
    if target is None or flags & COMPLEX:
        return name, None
    kind, numbers, _ = _element(content, place, order)
    source = ELEMENT_TYPES.get(kind)
    if source is None or not 2 <= len(shape) <= 32 or min(shape) < 0:
        raise _damaged_at("a matrix without a shape or numbers")
    if math.prod(shape) * int(source[1]) != len(numbers):
        raise _damaged_at(f"{len(numbers)} bytes of numbers for a matrix of shape {shape}")
    if source[0] == "f" and target[0] != "f":
        raise _damaged_at("fractions in a matrix of integers")
    values = stored = np.frombuffer(numbers, order + source)
    if stored.dtype != target:  # small integers may stand for doubles
        with np.errstate(over="ignore", invalid="ignore"):
            values = stored.astype(target)
        if not np.can_cast(stored.dtype, target) and not np.array_equal(values, stored, equal_nan=True):
            raise _damaged_at("numbers that its class can't hold")
    try:
        return name, values.reshape(shape, order="F")
    except ValueError:  # without numbers a shape may be anything
        raise _damaged_at(f"a matrix of shape {shape}") from None


def mat_bytes(key: str, value: NDArray) -> bytes:
    """One variable as a MATLAB v5 file, with the same bytes for the same value.

    Source: scipy puts the time of writing into the 116-byte description that opens the file; it is replaced here.
    """

    stream = io.BytesIO()
    savemat(stream, {key: value})
    data = bytearray(stream.getvalue())
    data[:116] = b"MATLAB 5.0 MAT-file, written by DeepMI".ljust(116)
    return bytes(data)


def write_mat(path: Path, key: str, value: NDArray) -> None:
    """Write one variable as MATLAB v5, in one step."""
    with write_atomically(path) as temporary:
        temporary.write_bytes(mat_bytes(key, value))
