"""Safetensors files: what is opened costs its own bytes, and what is damaged is refused by name."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from lmloop.errors import ArtifactError
from lmloop.weights.checkpoint import load_model, save_model
from lmloop.weights.stored import LONGEST_JSON, read_json, read_tensors

from ..conftest import random_model, tiny_shape

MEASURE = """
import re, sys, torch
from pathlib import Path
from lmloop.weights.checkpoint import load_model
def kept(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
torch.set_num_threads(1)
before = kept("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the highest mark begins here
model = load_model(sys.argv[1], dtype=getattr(torch, sys.argv[2]))
touched = sum(float(each.sum()) for each in model.parameters())
print(kept("VmHWM") - before, sum(each.nbytes for each in model.parameters()))
"""


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_open_model_is_in_memory_once(tmp_path: Path, dtype: str) -> None:
    shape = tiny_shape(
        vocab_size=8192, num_layers=6, hidden_size=512, head_dim=128, intermediate_size=1536
    )
    model = random_model(shape)
    save_model(model, tmp_path, stop_id=1, document_id=0)
    command = [sys.executable, "-c", MEASURE, str(tmp_path), dtype]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    peak, own = map(int, done.stdout.split())
    largest = model.embedding.weight.nbytes
    assert own < peak + 2**20, "the measure counts what the model holds"
    assert peak < own + largest + 2**22


def test_tensors_are_those_that_were_saved(tmp_path: Path) -> None:
    saved = {"a": torch.arange(6.0).view(2, 3), "b": torch.tensor(3.0), "c": torch.zeros(0, 2)}
    save_file(saved, tmp_path / "model.safetensors")
    tensors = read_tensors(tmp_path)
    assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
        name: tensor.tolist() for name, tensor in saved.items()
    }


def test_what_is_written_to_a_tensor_stays_in_memory(tmp_path: Path) -> None:
    save_file({"a": torch.ones(4)}, tmp_path / "model.safetensors")
    tensors = read_tensors(tmp_path)
    tensors["a"].fill_(2.0)
    assert read_tensors(tmp_path)["a"].tolist() == [1.0] * 4


def test_json_that_is_endless_or_a_tower_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    with path.open("wb") as file:
        file.truncate(LONGEST_JSON + 1)
    with pytest.raises(ValueError, match="longer"):
        read_json(path)
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="deeply"):
        read_json(path)


Header = dict[str, Any]
Q = "model.layers.0.self_attn.q_proj.weight"


def write_header(path: Path, header: Header | str, data: bytes) -> None:
    """A safetensors file with any header."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def take_header(whole: bytes) -> tuple[Header, bytes]:
    """The header of a safetensors file, and what is behind it."""
    end = 8 + int.from_bytes(whole[:8], "little")
    return json.loads(whole[8:end]), whole[end:]


def shift(header: Header, name: str, *offsets: int) -> None:
    header[name]["data_offsets"] = list(offsets)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda header: shift(header, Q, 0, 2**60),
        lambda header: shift(header, Q, 2**63, 2**63 + 3072),
        lambda header: shift(header, Q, -8, 3064),
        lambda header: shift(header, Q, *header["model.norm.weight"]["data_offsets"]),
        lambda header: header[Q].update(dtype="F128"),
        lambda header: header[Q].update(dtype="F8_E4M3"),
        lambda header: header[Q].update(shape=[2**40, 2**40]),
        lambda header: header[Q].update(shape=[-32, -24]),
        lambda header: header.update({Q: None}),
        lambda header: header.pop(Q),
    ],
)
def test_a_header_that_lies_is_refused_by_name(
    tmp_path: Path, spoil: Callable[[Header], object]
) -> None:
    save_model(random_model(tiny_shape()), tmp_path, stop_id=1, document_id=0)
    path = tmp_path / "model.safetensors"
    header, data = take_header(path.read_bytes())
    spoil(header)
    write_header(path, header, data)
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        load_model(tmp_path)


def test_a_header_of_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((4 * 2**30).to_bytes(8, "little") + b"{")
        file.truncate(5 * 2**30)  # without a byte on disk
    tracemalloc.start()
    with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read"):
        read_tensors(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_a_tensor_named_twice_in_one_header_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    entries = [
        f'"a": {{"dtype": "F32", "shape": [1], "data_offsets": [{at}, {at + 4}]}}' for at in (0, 4)
    ]
    write_header(path, "{" + ", ".join(entries) + "}", bytes(8))
    with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read"):
        read_tensors(tmp_path)


NASTY = st.one_of(
    st.sampled_from(
        [0, 1, -1, 2, 2**31, 2**53, 2**63, 2**64, 10**12, 10**400, 0.5, -0.0, 1e308, float("inf")]
    ),
    st.sampled_from([float("nan"), None, True, "", "x", "gelu", "../x", [], {}, [[]], {"a": {}}]),
    st.sampled_from(["model.safetensors", "F64", "I64", "I8", "F4", [24, 24], [0, 8], [8, 0]]),
    st.integers(-(2**70), 2**70),
    st.recursive(st.none(), lambda inner: st.lists(inner, max_size=2), max_leaves=4),
)
CHANGE = st.tuples(st.integers(0, 10**6), st.sampled_from(["set", "drop", "add"]), NASTY)
FUZZ = settings(
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def mutate(data: Any, place: int, how: str, value: Any) -> None:
    """Change one entry of nested JSON, in place."""
    value = copy.deepcopy(value)  # or a list that is put in twice could come to hold itself
    nodes = [data]
    for node in nodes:
        entries = node.values() if isinstance(node, dict) else node
        nodes.extend(each for each in entries if isinstance(each, dict | list) and each)
    node = nodes[place % len(nodes)]
    keys = sorted(node) if isinstance(node, dict) else range(len(node))
    if how == "add" and isinstance(node, dict):
        node["stranger"] = value
    elif how == "drop" and keys:
        del node[keys[place % len(keys)]]
    elif keys:
        node[keys[place % len(keys)]] = value


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in two files and their index."""
    folder = tmp_path_factory.mktemp("whole")
    shape = tiny_shape(vocab_size=16, hidden_size=8, num_layers=1)
    save_model(random_model(shape), folder, stop_id=1, document_id=0)
    tensors = {name: each.clone() for name, each in read_tensors(folder).items()}
    (folder / "model.safetensors").unlink()
    places = {name: f"{number % 2}.safetensors" for number, name in enumerate(sorted(tensors))}
    for file in set(places.values()):
        part = {name: tensor for name, tensor in tensors.items() if places[name] == file}
        save_file(part, folder / file)
    index = {"metadata": {"total_size": 1}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def refuses_or_opens(folder: Path) -> bool:
    """Whether a folder is refused: as it should be, in one line that names it."""
    try:
        load_model(folder)(torch.tensor([[1, 2]]))
    except ArtifactError as refusal:
        assert "\n" not in str(refusal)
        assert str(folder) in str(refusal)
        return True
    return False


def highest_memory() -> int:
    """Bytes that this process has held since the mark was last set back."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "0.safetensors", "bytes"]
)
def test_a_mutated_folder_is_refused_or_opens(whole: Path, name: str, tmp_path: Path) -> None:
    for file in whole.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    victim = tmp_path / ("0.safetensors" if name == "bytes" else name)
    before, refused = victim.read_bytes(), []

    @settings(FUZZ, max_examples=150)
    @given(
        changes=st.lists(CHANGE, min_size=1, max_size=3), noise=st.binary(min_size=1, max_size=9)
    )
    def check(changes: list[tuple[int, str, Any]], noise: bytes) -> None:
        if name == "bytes":
            place = changes[0][0] % (len(before) if changes[0][1] == "set" else 600)
            data = bytearray(before)
            data[place : place + len(noise)] = noise if changes[0][1] != "drop" else b""
            victim.write_bytes(bytes(data))
        elif victim.suffix == ".json":
            told = json.loads(before)
            for change in changes:
                mutate(told, *change)
            victim.write_text(json.dumps(told))
        else:
            header, data = take_header(before)
            for change in changes:
                mutate(header, *change)
            write_header(victim, header, data)
        refused.append(refuses_or_opens(tmp_path))

    Path("/proc/self/clear_refs").write_text("5")
    before_check = highest_memory()
    check()
    assert highest_memory() - before_check < 2**26
    assert len(refused) >= 140
    assert any(refused)
