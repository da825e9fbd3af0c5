"""The checkpoint folder: what is saved comes back, and what does not fit is refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lmloop.errors import ArtifactError
from lmloop.model.config import ModelConfig
from lmloop.model.quantized import Int8Linear, quantize_int8
from lmloop.model.transformer import Transformer
from lmloop.weights.checkpoint import load_config, load_model, save_model

from ..conftest import random_model, tiny_shape

TOKENS = torch.tensor([[1, 2, 3, 4]])
DOWN = "model.layers.0.mlp.down_proj.weight"


def save(
    folder: Path, *, int8: bool = False, dtype: torch.dtype = torch.float32, **changes: Any
) -> Transformer:
    model = random_model(tiny_shape(int8=int8, **changes))
    if int8:
        quantize_int8(model)
    model.to(dtype)
    save_model(model, folder, stop_id=1, document_id=0)
    return model.eval()


def edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("int8", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_a_saved_model_comes_back_bit_for_bit(
    tmp_path: Path, tied: bool, int8: bool, dtype: torch.dtype
) -> None:
    model = save(tmp_path, int8=int8, dtype=dtype, tie_embeddings=tied)
    again = load_model(tmp_path)
    assert not again.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
        assert again.state_dict()[name].dtype == tensor.dtype
    assert torch.equal(again(TOKENS), model(TOKENS))
    assert (again.head.weight is again.embedding.weight) == tied


def test_saving_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save(tmp_path / name)
    for file in ("model.safetensors", "config.json", "generation_config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_the_tensors_have_hugging_faces_names(tmp_path: Path) -> None:
    save(tmp_path, num_layers=1)
    layer = "model.layers.0."
    assert {
        name: list(each.shape) for name, each in load_file(tmp_path / "model.safetensors").items()
    } == {
        "model.embed_tokens.weight": [50, 24],
        "model.norm.weight": [24],
        f"{layer}input_layernorm.weight": [24],
        f"{layer}post_attention_layernorm.weight": [24],
        f"{layer}self_attn.q_proj.weight": [32, 24],
        f"{layer}self_attn.k_proj.weight": [16, 24],
        f"{layer}self_attn.v_proj.weight": [16, 24],
        f"{layer}self_attn.o_proj.weight": [24, 32],
        f"{layer}self_attn.q_norm.weight": [8],
        f"{layer}self_attn.k_norm.weight": [8],
        f"{layer}mlp.gate_proj.weight": [40, 24],
        f"{layer}mlp.up_proj.weight": [40, 24],
        f"{layer}mlp.down_proj.weight": [24, 40],
    }
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 0]


def test_int8_rests_in_the_form_of_compressed_tensors(tmp_path: Path) -> None:
    save(tmp_path, int8=True, num_layers=1, tie_embeddings=False)
    tensors = load_file(tmp_path / "model.safetensors")
    scaled = sorted(name for name in tensors if name.endswith("weight_scale"))
    assert len(scaled) == 7
    for name in scaled:
        packed = tensors[name.replace("_scale", "_packed")]
        rows, columns = tensors[name.replace("_scale", "_shape")].tolist()
        assert packed.dtype == torch.int32
        assert packed.shape == (rows, columns / 4)
        assert tensors[name].shape == (rows, 1)
    assert tensors["lm_head.weight"].dtype == torch.float32
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"]["format"] == "pack-quantized"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop(f"{DOWN}_shape"), "weight_shape"),
        (lambda tensors: tensors.update({f"{DOWN}_shape": torch.tensor([24, 44])}), "for .24, 44"),
        (lambda tensors: tensors.update({f"{DOWN}_shape": torch.tensor([24])}), "range"),
        (lambda tensors: tensors.update({f"{DOWN}_packed": torch.zeros(24, 10)}), "float32"),
    ],
)
def test_packed_weights_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], told: str
) -> None:
    save(tmp_path, int8=True)
    edit_tensors(tmp_path, change)
    with pytest.raises(ArtifactError, match=f"8-bit weights are damaged.*{told}"):
        load_model(tmp_path)


def test_weights_are_read_in_the_dtype_asked_for(tmp_path: Path) -> None:
    save(tmp_path, int8=True)
    model = load_model(tmp_path, dtype=torch.bfloat16)
    assert model.embedding.weight.dtype == torch.bfloat16
    layer = model.get_submodule("blocks.0.feed_forward.part.down")
    assert isinstance(layer, Int8Linear)
    assert (layer.weight.dtype, layer.scale.dtype) == (torch.int8, torch.bfloat16)


@pytest.mark.parametrize("padding", range(0, 64, 8))
def test_int8_weights_lie_at_addresses_that_the_kernel_can_read(
    tmp_path: Path, padding: int
) -> None:
    save(tmp_path, int8=True)
    tensors = load_file(tmp_path / "model.safetensors")
    # The header's length decides where in the file, and so in memory, the weights begin.
    save_file(tensors, tmp_path / "model.safetensors", metadata={"x": "x" * padding})
    for module in load_model(tmp_path).modules():
        if isinstance(module, Int8Linear):
            assert module.weight.data_ptr() % 64 == 0


def test_a_loaded_model_can_be_trained(tmp_path: Path) -> None:
    save(tmp_path)
    before = (tmp_path / "model.safetensors").read_bytes()
    model = load_model(tmp_path)
    model(TOKENS).logsumexp(-1).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            assert parameter.grad is not None
            parameter.sub_(parameter.grad)
    assert (tmp_path / "model.safetensors").read_bytes() == before


def test_a_tied_folder_that_holds_the_head_as_well_opens(tmp_path: Path) -> None:
    model = save(tmp_path)
    head = model.head.weight.detach().clone()
    edit_tensors(tmp_path, lambda tensors: tensors.update({"lm_head.weight": head}))
    assert torch.equal(load_model(tmp_path)(TOKENS), model(TOKENS))


Q = "model.layers.1.self_attn.q_proj.weight"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda tensors: tensors.pop(Q), "lacks the tensor .*layers.1.self_attn.q_proj"),
        (lambda tensors: tensors.update(stranger=torch.zeros(1)), r"not known: \['stranger'\]"),
        (
            lambda tensors: tensors.update({Q: torch.zeros(31, 24)}),
            r"q_proj.*\[31, 24\].*says .*\[32, 24\]",
        ),
        (
            lambda tensors: tensors.update({Q: torch.zeros(32, 25)}),
            r"q_proj.*\[32, 25\].*says .*\[32, 24\]",
        ),
        (lambda tensors: tensors.update({Q: tensors[Q].to(torch.int8)}), "q_proj.*int8.*float"),
        (lambda tensors: tensors.clear(), "lacks the tensor"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], object], told: str
) -> None:
    save(tmp_path)
    edit_tensors(tmp_path, change)
    with pytest.raises(ArtifactError, match=told) as caught:
        load_model(tmp_path)
    assert "model.safetensors" in str(caught.value)


def test_scales_of_groups_are_not_read_as_scales_of_rows(tmp_path: Path) -> None:
    save(tmp_path, int8=True)
    name = "model.layers.0.mlp.down_proj.weight_scale"
    edit_tensors(tmp_path, lambda tensors: tensors.update({name: torch.ones(24, 2)}))
    with pytest.raises(ArtifactError, match=r"down_proj.weight_scale is .*\[24, 2\]"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not safetensors", b"\xff" * 100])
def test_a_damaged_weights_file_is_refused(tmp_path: Path, content: bytes) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read"):
        load_model(tmp_path)


@pytest.mark.parametrize("cut", [1, 1000])
def test_a_truncated_weights_file_is_refused(tmp_path: Path, cut: int) -> None:
    save(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[:-cut])
    with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read"):
        load_model(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no checkpoint: it has no config\.json"):
        load_model(tmp_path)
    save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors cannot be read"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", '{"model_type": "qwen3"}', '{"model_type": "qwen3", "rope_parameters": 7}'],
)
def test_a_damaged_config_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"config\.json is damaged"):
        load_config(tmp_path)


@pytest.mark.parametrize("value", ["24", 0, -1, 2.5, None, True])
def test_a_size_that_is_no_positive_whole_number_is_refused(tmp_path: Path, value: object) -> None:
    save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": value}))
    with pytest.raises(ArtifactError, match="damaged.*hidden_size"):
        load_model(tmp_path)


def test_the_config_comes_back(tmp_path: Path) -> None:
    save(tmp_path, int8=True, tie_embeddings=False)
    assert load_config(tmp_path) == tiny_shape(int8=True, tie_embeddings=False)
    assert isinstance(load_config(tmp_path), ModelConfig)


@pytest.mark.parametrize("int8", [True, False])
@torch.no_grad()
def test_a_model_with_biases_and_without_norms_comes_back(tmp_path: Path, int8: bool) -> None:
    changes: dict[str, Any] = {"family": "qwen2", "qk_norm": False, "qkv_bias": True}
    model = save(tmp_path, int8=int8, **changes)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert torch.equal(again(TOKENS), model(TOKENS))


def shard(folder: Path) -> None:
    """Lay the one file out as two, as transformers does with large models."""
    tensors = load_file(folder / "model.safetensors")
    places = {
        name: f"model-0000{number % 2 + 1}.safetensors" for number, name in enumerate(tensors)
    }
    for file in set(places.values()):
        part = {name: tensor.clone() for name, tensor in tensors.items() if places[name] == file}
        save_file(part, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def edit_places(folder: Path, change: Callable[[dict[str, str]], object]) -> None:
    index = folder / "model.safetensors.index.json"
    places = json.loads(index.read_text())["weight_map"]
    change(places)
    index.write_text(json.dumps({"weight_map": places}))


@torch.no_grad()
def test_a_model_in_shards_is_the_same(tmp_path: Path) -> None:
    model = save(tmp_path)
    shard(tmp_path)
    assert torch.equal(load_model(tmp_path)(TOKENS), model(TOKENS))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda folder: (folder / "model-00002.safetensors").unlink(), "model-00002.safetensors"),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("[]"), "is damaged"),
        (
            lambda folder: edit_places(folder, lambda places: places.update(a="../secret")),
            "'../secret', which is no file beside it",
        ),
        (
            lambda folder: edit_places(
                folder, lambda places: places.update(a="model-00001.safetensors")
            ),
            r"no shard holds \['a'\]",
        ),
        (
            lambda folder: (folder / "model-00002.safetensors").write_bytes(
                (folder / "model-00001.safetensors").read_bytes()
            ),
            "a second time",
        ),
    ],
)
def test_shards_that_do_not_fit_are_refused_by_name(
    tmp_path: Path, spoil: Callable[[Path], object], told: str
) -> None:
    save(tmp_path)
    shard(tmp_path)
    spoil(tmp_path)
    with pytest.raises(ArtifactError, match=told):
        load_model(tmp_path)


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path: Path) -> None:
    save(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ArtifactError, match=r"pytorch_model\.bin is a pickle.*save_pretrained"):
        load_model(tmp_path)
