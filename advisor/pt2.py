"""Reads a ``.pt2`` file without running anything that is in it.

``torch.export.load`` trusts its file: it unpickles custom constants, pickled weights and (when a
restricted load fails) the sample inputs, opens compiled libraries, evaluates symbolic shapes with
``sympy.sympify``, and resolves operator names by walking attributes of ``torch``, which reaches
``torch.os``. Its documentation says never to load an untrusted file. A program of ordinary layers
needs none of that: its weights are raw bytes. So the archive is screened first, and one that
holds anything else is refused with the reason.
"""

from __future__ import annotations

import ast
import io
import json
import logging
import pickle  # noqa: TID251  (only for the error that its restricted unpickler raises)
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import torch
from torch.export import ExportedProgram
from torch.export.pt2_archive import PT2ArchiveReader

from advisor.errors import ModelError

LOAD_ERRORS: Final = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    NotImplementedError,
    OSError,
)

_OPERATORS: Final = re.compile(
    r"torch\.ops\.(?!_)\w+\.((?!__)\w+|__(and|or|xor|lshift|rshift)__)(\.(?!__)\w+)?"
    r"|torch\.(_)?sym_\w+|math\.[a-z]\w*"
    r"|_operator\.(abs|add|and_|eq|floordiv|ge|getitem|gt|le|lshift|lt|mod|mul|ne|neg|not_|or_|pos"
    r"|pow|rshift|sub|truediv|xor)"
)
"""Registered operators and plain arithmetic on sizes: calling one cannot run foreign code."""

_SHAPE_WORDS: Final = frozenset(
    re.findall(
        r"\w+",
        """
        Abs Add And BitwiseFn_bitwise_and BitwiseFn_bitwise_or CeilDiv
        CeilToInt CleanDiv Equality FloatPow FloatTrueDiv Float
        FloorDiv FloorToInt GreaterThan Identity IntTrueDiv Integer
        IsNonOverlappingAndDenseIndicator LShift LessThan Max Min Mod
        ModularIndexing Mul Not Or Piecewise Pow
        PowByNatural PythonMod RShift Rational RoundDecimal RoundToInt
        StrictGreaterThan StrictLessThan Symbol ToFloat TruncToFloat TruncToInt
        Unequality Where ceiling floor sqrt
        """,
    )
)
"""Functions that torch.export writes into symbolic shapes."""

_SHAPE_NODES: Final = (
    ast.Expression,
    ast.BinOp,
    ast.UnaryOp,
    ast.BoolOp,
    ast.Compare,
    ast.Call,
    ast.keyword,
    ast.Name,
    ast.Constant,
    ast.Tuple,
    ast.operator,
    ast.unaryop,
    ast.boolop,
    ast.cmpop,
    ast.expr_context,
)


def load_program(path: Path) -> ExportedProgram:
    """The program that ``torch.export.save`` wrote to ``path``.

    Raises:
        ModelError: not such a file, damaged, from an unreadable version, or one that would run
            code on loading.
    """
    _screen(path)
    # The last message of torch's loader repeats the error that is raised here.
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        return torch.export.load(path)
    except LOAD_ERRORS as error:
        raise ModelError(
            f"{path} cannot be read as an exported program by PyTorch {torch.__version__}: "
            f"{_first_line(error)}; export it again with this version"
        ) from error
    finally:
        logger.setLevel(level)


def _screen(path: Path) -> None:
    """Refuse an archive that holds anything but raw tensors and a graph of operators."""
    if not zipfile.is_zipfile(path):
        raise ModelError(f"{path} is no .pt2 archive; write one with torch.export.save")
    with zipfile.ZipFile(path) as archive:
        # The format before PyTorch 2.8, kept entirely in pickles, has its files at the top.
        if any("/" not in name for name in archive.namelist()):
            raise ModelError(
                f"{path} is in an old format that holds pickles, which are never read; "
                "load it where you trust it and save it again with PyTorch 2.8 or newer"
            )
    try:
        reader = PT2ArchiveReader(str(path))
        names = reader.get_file_names()
        payload = {
            name: reader.read_bytes(name)
            for name in names
            if _is_document(name) or name.startswith("data/sample_inputs/")
        }
        documents: dict[str, object] = {
            name: json.loads(content) for name, content in payload.items() if _is_document(name)
        }
    except (*LOAD_ERRORS, RecursionError) as error:
        raise ModelError(
            f"{path} is damaged or no file of torch.export.save: {_first_line(error)}"
        ) from error
    if not any(name.startswith("models/") for name in names):
        raise ModelError(f"{path} holds no exported program; write one with torch.export.save")
    danger = next(_dangers(names, payload, documents), None)
    if danger is not None:
        raise ModelError(
            f"{path} is refused: {danger}, which could run code on loading. Only programs of "
            "plain tensors and registered operators are read; give a package.module:factory "
            "that loads the file itself if you trust it"
        )


def _dangers(
    names: list[str], payload: dict[str, bytes], documents: dict[str, object]
) -> Iterator[str]:
    for name in names:
        if name.startswith("data/aotinductor/"):
            yield f"{name} is a compiled library"
        elif name.startswith(("data/constants/", "data/weights/")) and name.endswith(".pt"):
            yield f"{name} is a pickle"
    for name, content in payload.items():
        if name.startswith("data/sample_inputs/") and not _is_plain(content):
            yield f"{name} holds more than tensors"
    for name, document in documents.items():
        for key, value in _entries(document):
            problem = _problem(key, value)
            if problem:
                yield f"{name} {problem}"


def _is_document(name: str) -> bool:
    """What the loader parses as JSON: everything under models/, and the tables of contents."""
    return name.startswith("models/") or (name.endswith(".json") and not name.startswith("extra/"))


def _problem(key: str, value: object) -> str:
    if key == "path_name" and str(value).startswith(("custom_obj", "opaque_obj")):
        return f"names the pickled object {value}"
    if key == "use_pickle" and value:
        return "declares a pickled tensor"
    # In the table of tensors, "target" may be the name of one, and its value a description.
    is_tensor = not isinstance(value, str) and "dtype" in _keys(value)
    is_call = key in ("target", "as_operator") and value is not None and not is_tensor
    if is_call and not (isinstance(value, str) and _OPERATORS.fullmatch(value)):
        return f"calls {value!r}, which is no registered operator"
    if key == "expr_str" and not (isinstance(value, str) and _is_shape(value)):
        return f"has the symbolic shape {str(value)[:80]!r}, which is no arithmetic"
    if key in ("in_spec", "out_spec") and "__enum__" in _keys(value):
        return "imports a module to read an enumeration"
    return ""


def _is_plain(content: bytes) -> bool:
    """Whether sample inputs load under PyTorch's restricted unpickler."""
    if not content:
        return True
    try:
        # weights_only: the restricted unpickler, which builds tensors and plain containers only.
        torch.load(io.BytesIO(content), weights_only=True)  # noqa: TID251
    except (pickle.UnpicklingError, EOFError, *LOAD_ERRORS):
        return False
    return True


def _is_shape(text: str) -> bool:
    """Whether a symbolic shape is arithmetic on symbols: sympy evaluates it as Python."""
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(_is_arithmetic(node) for node in ast.walk(tree))


def _is_arithmetic(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name(id=name)):
            return name in _SHAPE_WORDS
        case ast.Call():
            return False
        case ast.Constant(value=str() as text):
            return re.fullmatch(r"\w+|[-+]?[\d.]+(e[-+]?\d+)?", text) is not None
        case ast.Constant(value=value):
            return isinstance(value, (bool, int, float))
        case _:
            return isinstance(node, _SHAPE_NODES)


def _entries(document: object) -> Iterator[tuple[str, object]]:
    """Every key and value of a tree, outermost first."""
    for key, value in _children(document):
        if key:
            yield key, value
        yield from _entries(value)


def _keys(value: object) -> set[str]:
    """Every key of a tree, looking into strings that hold JSON themselves."""
    if isinstance(value, str):
        try:
            decoded: object = json.loads(value)
        except ValueError:
            return set()
        return set() if isinstance(decoded, str) else _keys(decoded)
    return {found for key, item in _children(value) for found in {key, *_keys(item)}}


def _children(value: object) -> list[tuple[str, object]]:
    """What a JSON object or array holds; the elements of an array have no key."""
    if isinstance(value, dict):
        return list(cast("dict[str, object]", value).items())
    if isinstance(value, list):
        return [("", item) for item in cast("list[object]", value)]
    return []


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
