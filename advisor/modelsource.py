"""Loads the model that a command line or a plan names.

Three forms: ``package.module:factory``, a ``.pt2`` file, a Hugging Face folder. Weights come from
safetensors, a screened ``.pt2``, or code that the user names; nothing is ever unpickled here.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import json
import sys
import traceback
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final, cast

from torch import nn
from torch.export import ExportedProgram

from advisor.errors import AdvisorError, MissingDependencyError, ModelError, UsageError
from advisor.signature import Model

FORMS: Final = (
    "give package.module:factory, a .pt2 file of torch.export.save, or a Hugging Face folder "
    "with config.json and *.safetensors"
)
FACTORY_ERRORS: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    ImportError,
    LookupError,
    NotImplementedError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What a user's factory may raise by mistake."""

PICKLES: Final = (".pt", ".pth", ".bin", ".ckpt", ".pkl")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedModel:
    """A model and what its factory gave with it.

    inputs: example inputs in any form that ``advise`` takes. calibration: an iterable of batches.
    spec: the text that loads the same again, with an absolute path.
    """

    model: Model
    inputs: object | None = None
    calibration: Iterable[object] | None = None
    spec: str


def load_model(spec: str) -> LoadedModel:
    """The model that ``spec`` names.

    Raises:
        UsageError: unknown form, or no such file, module or attribute (with the nearest names).
        MissingDependencyError: a package that the model needs is not installed.
        ModelError: the file is damaged, incomplete, or would have to be unpickled.
    """
    if not spec.strip():
        raise UsageError(f"the model's name is empty; {FORMS}")
    path = Path(spec).expanduser()
    if path.is_dir():
        return _load_folder(path.resolve())
    if path.suffix == ".pt2":
        if not path.is_file():
            raise UsageError(f"no such file: {path}; {FORMS}")
        from advisor.pt2 import load_program

        return LoadedModel(model=load_program(path), spec=str(path.resolve()))
    if path.suffix in PICKLES:
        raise UsageError(
            f"{path} is a pickle, and pickles run code on loading; {FORMS}. A factory of your own "
            "may load it with torch.load(..., weights_only=True)"
        )
    module_name, colon, attribute = spec.partition(":")
    if path.exists() or not colon or not all(p.isidentifier() for p in module_name.split(".")):
        what = f"{path} is not a model" if path.exists() else f"model {spec!r} is not understood"
        raise UsageError(f"{what}; {FORMS}")
    return _load_factory(spec, module_name, attribute)


def _load_factory(spec: str, module_name: str, attribute: str) -> LoadedModel:
    found: Any = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise UsageError(_no_attribute(found, module_name, part))
        found = getattr(found, part)
    made = found if isinstance(found, nn.Module) else _call(found, spec)
    parts = cast("tuple[object, ...]", made) if isinstance(made, tuple) else (made,)
    model = parts[0] if parts else None
    if len(parts) > 3 or not isinstance(model, (nn.Module, ExportedProgram)):
        returned = f"({', '.join(type(part).__name__ for part in parts)})"
        raise UsageError(
            f"{spec} returned {returned if isinstance(made, tuple) else type(made).__name__}; "
            "a factory returns a torch.nn.Module, (module, inputs) or (module, inputs, calibration)"
        )
    calibration = parts[2] if len(parts) == 3 else None
    if calibration is not None and not isinstance(calibration, Iterable):
        raise UsageError(
            f"{spec} returned calibration of type {type(calibration).__name__}; "
            "it must be an iterable of batches"
        )
    return LoadedModel(
        model=model,
        inputs=parts[1] if len(parts) > 1 else None,
        calibration=cast("Iterable[object] | None", calibration),
        spec=spec,
    )


def _import(module_name: str) -> ModuleType:
    """Import from the working directory first, as ``python -m`` does.

    The path stays, because a factory may import more of the user's package when it is called.
    """
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if module_name == missing or module_name.startswith(f"{missing}."):
            raise UsageError(
                f"no module {missing!r} (looked for in {here} and the installed packages)"
                f"{_near(missing.rpartition('.')[2], _neighbours(here, missing))}; run from the "
                "folder that holds your package, or install it"
            ) from error
        raise MissingDependencyError(
            f"importing {module_name} needs the package {missing!r}, which is not installed; "
            f"install it into this environment ({sys.prefix})"
        ) from error
    except (ImportError, SyntaxError) as error:
        raise UsageError(f"{module_name} cannot be imported: {error}") from error


def _call(factory: Any, spec: str) -> object:
    if not callable(factory):
        raise UsageError(
            f"{spec} is a {type(factory).__name__}; name a function that returns the model"
        )
    needed = [
        name
        for name, parameter in inspect.signature(factory).parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    ]
    if needed:
        raise UsageError(
            f"{spec} requires arguments ({', '.join(needed)}), but a factory is called without "
            "any; wrap it in a function that fills them in"
        )
    try:
        return factory()
    except AdvisorError:
        raise
    except FACTORY_ERRORS as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise UsageError(
            f"{spec} raised {type(error).__name__}: {error} ({Path(frame.filename).name}:"
            f"{frame.lineno}); call it in Python to see where, and mend it"
        ) from error


def _no_attribute(found: Any, module_name: str, part: str) -> str:
    if not part:
        return f"no factory after the colon of {module_name}:; write {module_name}:function"
    names = [
        name for name in dir(found) if not name.startswith("_") and callable(getattr(found, name))
    ]
    own = [name for name in names if getattr(getattr(found, name), "__module__", "") == module_name]
    listed = f"; it defines {', '.join(own[:8])}" if own else ""
    return f"{module_name} has no {part!r}{_near(part, names)}{listed}"


def _neighbours(here: str, missing: str) -> list[str]:
    """Modules beside the missing one: in the working directory, or in its parent package."""
    parent = Path(here, *missing.split(".")[:-1])
    if not parent.is_dir():
        return []
    return [entry.stem for entry in parent.iterdir() if entry.is_dir() or entry.suffix == ".py"]


def _near(word: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(names), n=3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def _load_folder(folder: Path) -> LoadedModel:
    config = _read_config(folder)
    if not any(folder.glob("*.safetensors")):
        pickled = [file.name for file in folder.iterdir() if file.suffix in PICKLES]
        found = (
            f"only {', '.join(sorted(pickled))}, pickles that are never loaded"
            if pickled
            else "no weights"
        )
        raise ModelError(
            f"{folder} has {found}; convert it once where you trust it: "
            "model.save_pretrained(folder, safe_serialization=True)"
        )
    if "quantization_config" in config:
        raise ModelError(
            f"{folder} is quantized already (quantization_config in config.json); "
            "give the floating-point model that it was made from"
        )
    try:
        import transformers
    except ImportError as error:
        raise MissingDependencyError(
            f"{folder} is a Hugging Face model, which needs transformers; "
            'install it with: pip install "quantadvisor[hf]"'
        ) from error
    names = config.get("architectures") or ["AutoModel"]
    architecture = getattr(transformers, str(names[0]), None)
    if architecture is None or not hasattr(architecture, "from_pretrained"):
        why = (
            "its code lies in the folder (auto_map), and code from a model folder is never run"
            if "auto_map" in config
            else f"transformers {transformers.__version__} has no such class"
        )
        raise ModelError(
            f"{folder} asks for the architecture {names[0]}: {why}; give a package.module:factory "
            "that builds it"
        )
    return LoadedModel(model=_from_pretrained(architecture, folder), spec=str(folder))


@contextmanager
def _quietly() -> Generator[None]:
    """Without transformers' progress bar and load report; what matters in it is raised here."""
    # Any: the module's own functions carry no types.
    logging: Any = importlib.import_module("transformers.utils.logging")
    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def _from_pretrained(architecture: Any, folder: Path) -> nn.Module:
    """Weights in float32: the plan's reference is the unrounded model."""
    import torch
    from safetensors import SafetensorError

    try:
        with _quietly():
            model, info = architecture.from_pretrained(
                folder,
                local_files_only=True,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise ModelError(f"{folder} cannot be loaded: {error}") from error
    absent = sorted(info["missing_keys"])
    if absent:
        raise ModelError(
            f"{folder} lacks {len(absent)} weights of {architecture.__name__} "
            f"({', '.join(absent[:3])}...), which would be random numbers; correct "
            '"architectures" in config.json, or give a package.module:factory'
        )
    if getattr(model.config, "use_cache", False):
        model.config.use_cache = False  # a cache object among the outputs cannot be exported
    loaded: nn.Module = model.eval()
    return loaded


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / "config.json"
    if not file.is_file():
        held = ", ".join(sorted(entry.name for entry in folder.iterdir())[:6]) or "nothing"
        raise UsageError(
            f"{folder} is no Hugging Face model: it has no config.json (it holds {held}); {FORMS}"
        )
    try:
        config: object = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"{file} must hold a JSON object, not a {type(config).__name__}")
    return cast("dict[str, Any]", config)
