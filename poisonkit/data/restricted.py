"""Read the pickles that image data sets are published in, without running what a pickle may ask for.

A pickle is a program. Two gates stand before it:

1. every instruction is read first: only those that build strings, numbers, lists, dictionaries and arrays may occur,
   so the file is whole and no length or memo index in it is larger than the file itself;
2. names are looked up in a literal table of stand-ins, which read plain numbers, numeric arrays and pictures, and
   nothing else.

Memory stays within a small multiple of the file's size. Protocols 2 to 5, as Python 2, Python 3 and NumPy 1 and 2
write them.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from poisonkit.data.files import expect, reason
from poisonkit.errors import DataError, fail

# fmt: off
_INSTRUCTIONS = frozenset({
    "PROTO", "FRAME", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "LONG4",
    "BINFLOAT", "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "EMPTY_LIST", "APPEND", "APPENDS",
    "EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3",
    "BINPUT", "LONG_BINPUT", "MEMOIZE", "BINGET", "LONG_BINGET", "GLOBAL", "STACK_GLOBAL", "REDUCE", "NEWOBJ", "BUILD",
})
_SHAREABLE = frozenset({
    "BINSTRING", "SHORT_BINSTRING", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8",
    "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "GLOBAL", "STACK_GLOBAL", "REDUCE",
})
_OPCODES = {opcode.code: opcode for opcode in pickletools.opcodes}
# How the length before a string that may be long is written: bytes, and whether signed.
_LONG = {
    pickletools.TAKEN_FROM_ARGUMENT4: (4, True),
    pickletools.TAKEN_FROM_ARGUMENT4U: (4, False),
    pickletools.TAKEN_FROM_ARGUMENT8U: (8, False),
}
_NUMBERS = frozenset({"u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f4", "f8"})
# fmt: on


def read_pickle(path: Path) -> dict[str, Any]:
    """The dictionary pickled in the file ``path``, its keys as text.

    Raises DataError, naming the file, for anything but one whole pickled dictionary of strings, numbers, lists and
    numeric arrays. Nothing in the file is ever executed.
    """
    found = read_value(path, "dictionary")
    expect(isinstance(found, dict), path, "a pickled dictionary", f"a {type(found).__name__}")
    values = {key.decode("latin1") if isinstance(key, bytes) else key: value for key, value in found.items()}
    expect(all(isinstance(key, str) for key in values), path, "a dictionary with names for keys", "another key")
    return values


def read_value(path: Path, kind: str = "value") -> Any:
    """What is pickled in the file ``path``: strings, numbers, lists, tuples and dictionaries of arrays and pictures.

    Pictures of Pillow, grey or RGB, become arrays uint8 [H, W] or [H, W, 3]. Raises DataError, naming the file and
    calling what it should hold a ``kind``, for anything else. Nothing in the file is ever executed.
    """
    try:
        with path.open("rb") as file:
            _inspect(file)
            file.seek(0)
            return _plain(_Unpickler(file, encoding="latin1").load())
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    except OSError as error:
        fail(str(path), "a readable file", reason(error), error=DataError)
    except (
        *(pickle.UnpicklingError, EOFError, AttributeError, LookupError, TypeError, ValueError),
        *(MemoryError, OverflowError, RecursionError, BufferError),
    ) as error:
        fail(str(path), f"one whole pickled {kind} of arrays", reason(error), error=DataError)


def _plain(value: Any) -> Any:
    """``value`` with arrays in place of what stands for them."""
    if isinstance(value, _Array | _Picture):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_plain(item) for item in value)
    return value


def _inspect(file: IO[bytes]) -> None:
    """Refuse a pickle with an instruction outside the list, an outsized memo, or a container used twice."""
    stored, previous = 0, ""
    shareable: set[int] = set()
    for name, argument in _instructions(file):
        expect(name in _INSTRUCTIONS, "a data pickle", "built of data only", f"instruction {name}")
        if name in ("BINPUT", "LONG_BINPUT", "MEMOIZE"):
            # picklers number the memo in order, Python 2 from 1; a large index would make the unpickler fill gigabytes
            index = stored if argument is None else argument
            stored += 1
            expect(index <= stored, "a memo index", f"at most {stored}", index)
            (shareable.add if previous in _SHAREABLE else shareable.discard)(index)
        if name in ("BINGET", "LONG_BINGET"):
            # a tuple of two copies of a tuple of two copies of ... takes forever to hash
            expect(argument in shareable, "a container", "used once", "one used again")
        previous = name
    expect(not file.read(1), "a pickle", "the whole file", "more bytes after its end")


def _instructions(file: IO[bytes]) -> Iterator[tuple[str, Any]]:
    """Name and argument of each instruction, as of ``pickletools.genops``; strings that may be long are passed over.

    The pixels of a data set are one such string, and to read it twice would double the time and memory it takes.
    """
    name = ""
    while name != "STOP":
        code = file.read(1)
        found = _OPCODES.get(code.decode("latin1"))
        if found is None:
            raise ValueError(f"no instruction: {code!r}")
        name, kind, argument = found.name, found.arg, None
        if kind and kind.n in _LONG:
            width, signed = _LONG[kind.n]
            length = int.from_bytes(file.read(width), "little", signed=signed)
            if length < 0 or (length and not (file.seek(length - 1, 1) and file.read(1))):
                raise ValueError(f"{name} of {length} bytes, more than there are")
        elif kind:
            argument = kind.reader(file)
        yield name, argument


# The stand-ins. They take what NumPy's own pickles pass and ignore what they do not need. None is NumPy's: its types
# trust the state a pickle gives them, and a byte changed there corrupts the process.


class _Dtype:
    """A type of plain numbers; its byte order follows as state."""

    def __init__(self, code: object, *_: object) -> None:
        expect(code in _NUMBERS, "an array", "of plain numbers", "another type")
        self.value = np.dtype(str(code))

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.value = self.value.newbyteorder(state[1])


class _Array:
    """An array; its shape, type, order and bytes follow as state."""

    value: NDArray[Any]

    def __init__(self, *_: object) -> None:
        self.value = np.empty(0, np.uint8)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, fortran, content = state
        content = content.encode("latin1") if isinstance(content, str) else content
        self.value = np.frombuffer(content, dtype.value).reshape(shape, order="F" if fortran else "C")


class _Picture:
    """A picture of Pillow; its notes, mode, size, palette and bytes follow as state."""

    value: NDArray[Any]

    def __setstate__(self, state: list[Any]) -> None:
        _, mode, (width, height), palette, content = state
        expect(mode in ("L", "RGB") and palette is None, "a picture", "grey or RGB", mode)
        shape = (height, width) if mode == "L" else (height, width, 3)
        self.value = np.frombuffer(content, np.uint8).reshape(shape)


def _scalar(dtype: _Dtype, content: bytes) -> int | float:
    number: int | float = np.frombuffer(content, dtype.value, 1)[0].item()
    return number


def _from_buffer(content: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str = "C", *_: object) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _encode(text: str, encoding: str) -> bytes:
    expect(encoding == "latin1", "bytes", "coded as latin1", "another code")
    return text.encode("latin1")


def _ndarray(*_: object) -> None:
    expect(False, "numpy.ndarray", "named only as the kind of array to make", "a call of it")


_NAMES: dict[tuple[str, str], Callable[..., object]] = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _Array for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
    ("PIL.Image", "Image"): _Picture,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        known = (module, name) in _NAMES
        expect(known, "a data pickle", "made of plain arrays", f"a call of {module:.40}.{name:.40}")
        make = _NAMES[module, name]
        # one per look-up: a pickle may set attributes of what it finds; NEWOBJ, of pictures, asks for a type
        if make is _Picture:
            return type(_Picture.__name__, (_Picture,), {})
        return lambda *arguments: make(*arguments)
