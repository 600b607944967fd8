"""Loading a model by name: the three forms, and everything that is refused."""

from __future__ import annotations

import json
import logging
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from advisor.errors import MissingDependencyError, ModelError, UsageError
from advisor.modelsource import load_model

PACKAGE = {
    "__init__.py": "",
    "layers.py": "from torch import nn\ndef head():\n    return nn.Linear(4, 2)\n",
    "zoo.py": """
import torch
from torch import nn
from .layers import head

ready = head()
number = 3

def build():
    return head()

def with_inputs():
    return head(), torch.ones(2, 4)

def with_everything():
    return head(), torch.ones(2, 4), [torch.ones(2, 4)]

def sized(width, depth=2):
    return nn.Linear(width, depth)

def text():
    return "model"

def bad_calibration():
    return head(), None, 7

def late():
    from .layers import head as imported_when_called
    return imported_when_called()
""",
    "needy.py": "import a_package_that_is_not_there\n",
    "broken.py": "def build(:\n",
}


@pytest.fixture
def package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[str]:
    """A user's package in the working directory, under a name of its own for each test."""
    name = f"user_pkg_{abs(hash(request.node.name))}"
    folder = tmp_path / name
    folder.mkdir()
    for file, text in PACKAGE.items():
        (folder / file).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    yield name
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        del sys.modules[module]


def test_a_factory_with_relative_imports(package: str) -> None:
    loaded = load_model(f"{package}.zoo:build")
    assert isinstance(loaded.model, nn.Linear)
    assert loaded.inputs is None
    assert loaded.calibration is None
    assert loaded.spec == f"{package}.zoo:build"
    assert isinstance(load_model(f"{package}.zoo:late").model, nn.Linear)


def test_a_factory_may_give_inputs_and_calibration(package: str) -> None:
    assert isinstance(load_model(f"{package}.zoo:with_inputs").inputs, Tensor)
    loaded = load_model(f"{package}.zoo:with_everything")
    assert loaded.calibration is not None
    assert len(list(loaded.calibration)) == 1


def test_a_ready_module_is_taken_as_it_is(package: str) -> None:
    loaded = load_model(f"{package}.zoo:ready")
    assert loaded.model is sys.modules[f"{package}.zoo"].ready


@pytest.mark.parametrize(
    ("tail", "error", "message"),
    [
        (".zoo:biuld", UsageError, "has no 'biuld'; did you mean build"),
        (".zoo:", UsageError, "no factory after the colon"),
        (".zooo:build", UsageError, "no module .*did you mean zoo"),
        (".zoo:number", UsageError, "is a int; name a function"),
        (".zoo:sized", UsageError, r"requires arguments \(width\)"),
        (".zoo:text", UsageError, "returned str"),
        (".zoo:bad_calibration", UsageError, "calibration of type int"),
        (".needy:build", MissingDependencyError, "needs the package 'a_package_that_is_not_there'"),
        (".broken:build", UsageError, "cannot be imported: invalid syntax"),
        ("/zoo.py", UsageError, "is not a model; give package.module:factory"),
    ],
)
def test_a_wrong_factory_is_named(
    package: str, tail: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_model(package + tail)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no_such_module_at_all:build", "no module 'no_such_module_at_all'"),
        ("missing.pt2", "no such file: missing.pt2"),
        ("weights.pth", "is a pickle"),
        ("resnet18", "is not understood; give package.module:factory"),
        ("9bad.name:build", "is not understood"),
        ("", "the model's name is empty; give package.module:factory"),
    ],
)
def test_a_wrong_name_is_refused(spec: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        load_model(spec)


class Net(nn.Module):
    """Parameters, a buffer, a constant, a size computed from the batch, a named output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.linear = nn.Linear(4 * 6 * 6, 3)
        self.register_buffer("shift", torch.ones(3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.linear(self.conv(x).flatten(1)) + self.shift + torch.tensor(0.5)
        return {"naïve": y / (x.shape[0] * 2 + 1)}


def _export() -> ExportedProgram:
    batch = torch.export.Dim("batch", min=1, max=64)
    return torch.export.export(
        Net().eval(), (torch.randn(2, 1, 8, 8),), dynamic_shapes={"x": {0: batch}}
    )


@pytest.fixture(scope="module")
def program_file(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExportedProgram, Path]:
    program = _export()
    path = tmp_path_factory.mktemp("pt2") / "net.pt2"
    torch.export.save(program, path)
    return program, path


def test_an_exported_program_round_trips(program_file: tuple[ExportedProgram, Path]) -> None:
    program, path = program_file
    loaded = load_model(str(path))
    assert loaded.spec == str(path)
    assert isinstance(loaded.model, ExportedProgram)
    x = torch.randn(5, 1, 8, 8)
    assert torch.equal(loaded.model.module()(x)["naïve"], program.module()(x)["naïve"])


def test_a_transformer_program_passes_the_screen(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    shapes = {"src": {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}}
    program = torch.export.export(layer, (torch.randn(2, 6, 8),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "t.pt2")
    loaded = load_model(str(tmp_path / "t.pt2")).model
    assert isinstance(loaded, ExportedProgram)
    assert loaded.module()(torch.randn(3, 9, 8)).shape == (3, 9, 8)


def _rewrite(source: Path, target: Path, edit: Callable[[str, bytes], bytes | None]) -> Path:
    """Copy an archive, changing each entry; what ``edit`` maps to None is left out."""
    from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

    reader = PT2ArchiveReader(str(source))
    written = {"archive_format", "archive_version", ".data/version", "byteorder"}
    with PT2ArchiveWriter(str(target)) as writer:
        for name in reader.get_file_names():
            content = edit(name, reader.read_bytes(name))
            if content is not None and name not in written and ".data" not in name:
                writer.write_bytes(name, content)
    return target


class Bomb:
    """Unpickling this creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def _bomb_bytes(mark: Path) -> bytes:
    import io

    buffer = io.BytesIO()
    torch.save({"payload": Bomb(mark)}, buffer)
    return buffer.getvalue()


Change = Callable[[bytes], bytes | None]


def _calling(target: str) -> Change:
    def change(content: bytes) -> bytes:
        document = json.loads(content)
        document["graph_module"]["graph"]["nodes"][0]["target"] = target
        return json.dumps(document).encode()

    return change


def _sized(text: str) -> Change:
    old = json.dumps("Symbol('s77', positive=True, integer=True)").encode()

    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, json.dumps(text).encode())

    return change


def _stored(**changes: object) -> Change:
    def change(content: bytes) -> bytes:
        document = json.loads(content)
        next(iter(document["config"].values())).update(changes)
        return json.dumps(document).encode()

    return change


def _cut(content: bytes) -> bytes:
    return content[:-20]


def _dropped(_: bytes) -> None:
    return None


def _enumeration(content: bytes) -> bytes:
    document = json.loads(content)
    signature = document["graph_module"]["module_call_graph"][0]["signature"]
    context = '{"__enum__": true, "fqn": "antigravity:A", "name": "B"}'
    schema: dict[str, object] = {"type": "builtins.dict", "context": context, "children_spec": []}
    signature["out_spec"] = json.dumps([1, schema])
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        ("models/model.json", _calling("torch.os.system"), "torch.os.system"),
        ("models/model.json", _calling("_operator.methodcaller"), "methodcaller"),
        ("models/model.json", _calling("torch.ops.load_library"), "load_library"),
        ("models/model.json", _sized("().__class__.__mro__[1]"), "no arithmetic"),
        ("models/model.json", _sized("sympify('1')"), "no arithmetic"),
        ("models/model.json", _sized("Symbol('exec(1)')"), "no arithmetic"),
        ("models/model.json", _enumeration, "enumeration"),
        ("data/weights/model_weights_config.json", _stored(use_pickle=True), "pickled"),
        ("data/constants/model_constants_config.json",
         _stored(path_name="opaque_obj_0"), "pickled object"),
        ("models/model.json", _cut, "damaged"),
        ("models/model.json", _dropped, "no exported program"),
    ],
)  # fmt: skip
def test_a_program_that_could_run_code_is_refused(
    program_file: tuple[ExportedProgram, Path],
    tmp_path: Path,
    entry: str,
    change: Change,
    message: str,
) -> None:
    def edit(name: str, content: bytes) -> bytes | None:
        return change(content) if name == entry else content

    path = _rewrite(program_file[1], tmp_path / "evil.pt2", edit)
    with pytest.raises(ModelError, match=message):
        load_model(str(path))


def test_a_tensor_may_be_called_target(tmp_path: Path) -> None:
    """The table of tensors has their names as keys."""

    class Shift(nn.Module):
        def forward(self, source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return source + target

    path = tmp_path / "shift.pt2"
    torch.export.save(torch.export.export(Shift(), (torch.ones(2), torch.ones(2))), path)
    assert isinstance(load_model(str(path)).model, ExportedProgram)


def test_the_rewriting_itself_changes_nothing(
    program_file: tuple[ExportedProgram, Path], tmp_path: Path
) -> None:
    path = _rewrite(program_file[1], tmp_path / "same.pt2", lambda _, content: content)
    assert isinstance(load_model(str(path)).model, ExportedProgram)


def test_sample_inputs_are_never_unpickled(
    program_file: tuple[ExportedProgram, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = tmp_path / "ran"

    def edit(name: str, content: bytes) -> bytes:
        return _bomb_bytes(mark) if name.startswith("data/sample_inputs") else content

    path = _rewrite(program_file[1], tmp_path / "evil.pt2", edit)
    with pytest.raises(ModelError, match="holds more than tensors"):
        load_model(str(path))
    assert not mark.exists()
    log = logging.getLogger("torch._export.serde.serialize")
    monkeypatch.setattr(log, "disabled", True)  # its warning has a broken format string
    torch.export.load(path)  # PyTorch's own loader does run it: the reason for the screen
    assert mark.exists()


def test_a_pickled_weight_file_is_refused(
    program_file: tuple[ExportedProgram, Path], tmp_path: Path
) -> None:
    from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

    reader = PT2ArchiveReader(str(program_file[1]))
    for extra, message in (
        ("data/weights/model.pt", "is a pickle"),
        ("data/weights/../model.pt", "is a pickle"),
        ("data/aotinductor/model/code.so", "compiled library"),
    ):
        path = tmp_path / f"{Path(extra).suffix[1:]}{len(extra)}.pt2"
        with PT2ArchiveWriter(str(path)) as writer:
            writer.write_bytes("models/model.json", reader.read_bytes("models/model.json"))
            writer.write_bytes(extra, b"")
        with pytest.raises(ModelError, match=message):
            load_model(str(path))


def test_other_files_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "text.pt2"
    text.write_text("not an archive")
    with pytest.raises(ModelError, match=r"no .pt2 archive"):
        load_model(str(text))
    old = tmp_path / "old.pt2"
    with zipfile.ZipFile(old, "w") as archive:
        archive.writestr("version", "8.8")
        archive.writestr("serialized_state_dict.json", b"")
    with pytest.raises(ModelError, match="old format that holds pickles"):
        load_model(str(old))
    other = tmp_path / "other.pt2"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("folder/file", "text")
    with pytest.raises(ModelError, match=r"damaged or no file of torch.export.save"):
        load_model(str(other))


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        vocab_size=30,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).half().eval()
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    return model, folder


def _copy(source: Path, target: Path, **changes: object) -> Path:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, **changes}))
    return target


def test_a_hugging_face_folder(bert_folder: tuple[nn.Module, Path]) -> None:
    model, folder = bert_folder
    loaded = load_model(str(folder))
    assert type(loaded.model) is type(model)
    assert isinstance(loaded.model, nn.Module)
    assert not loaded.model.training
    state = loaded.model.state_dict()
    for name, value in model.state_dict().items():
        assert state[name].dtype in (torch.float32, torch.int64)
        assert torch.equal(state[name], value.to(state[name].dtype))


def test_a_decoder_returns_no_cache(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=30, n_positions=32)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path)
    loaded = load_model(str(tmp_path)).model
    assert isinstance(loaded, nn.Module)
    assert list(loaded(torch.zeros(1, 4, dtype=torch.long))) == ["logits"]


def test_wrong_folders_are_refused(bert_folder: tuple[nn.Module, Path], tmp_path: Path) -> None:
    _, folder = bert_folder
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(UsageError, match=r"no config.json \(it holds nothing\)"):
        load_model(str(empty))
    pickled = _copy(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"only pytorch_model.bin, pickles that are never loaded"):
        load_model(str(pickled))
    unknown = _copy(folder, tmp_path / "unknown", architectures=["NoSuchNet"])
    with pytest.raises(ModelError, match=r"NoSuchNet: transformers .* has no such class"):
        load_model(str(unknown))
    remote = _copy(
        folder, tmp_path / "remote", architectures=["Custom"], auto_map={"AutoModel": "c.C"}
    )
    with pytest.raises(ModelError, match="code from a model folder is never run"):
        load_model(str(remote))
    quantized = _copy(folder, tmp_path / "quantized", quantization_config={"quant_method": "gptq"})
    with pytest.raises(ModelError, match="quantized already"):
        load_model(str(quantized))
    lacking = _copy(folder, tmp_path / "lacking", architectures=["BertForMaskedLM"])
    with pytest.raises(ModelError, match=r"lacks .* weights of BertForMaskedLM"):
        load_model(str(lacking))
    damaged = _copy(folder, tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes(b"\x00" * 64)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model(str(damaged))
    (damaged / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        load_model(str(damaged))
    (damaged / "config.json").write_text("[]")
    with pytest.raises(ModelError, match="must hold a JSON object"):
        load_model(str(damaged))
