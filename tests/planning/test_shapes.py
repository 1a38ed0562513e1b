"""Parameters counted from a shape are those that the model really has."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from planned_setups import ALL_LINEAR, LLAMA
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from agent_rft.contracts.errors import UserError
from agent_rft.contracts.training import Lora
from agent_rft.planning.shapes import CATALOGUE, lora_parameters, shape_of_config

TINY = Path(__file__).resolve().parents[2] / "models" / "research-tiny"
SMALL = {
    "hidden_size": 64,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "vocab_size": 300,
    "tie_word_embeddings": False,
}


def test_llama_70b_by_hand():
    # a layer: q and o 8192 x 8192, k and v 8192 x 1024, three of 8192 x 28672, two norms of 8192
    layer = 2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    assert CATALOGUE[LLAMA].parameters == 80 * layer + 2 * 128256 * 8192 + 8192 == 70_553_706_496


@pytest.mark.parametrize(("name", "billions"), [("7B", 7.615616512), ("14B", 14.770033664), ("32B", 32.763876352), ("72B", 72.706203648)])
def test_the_catalogue_has_the_sizes_that_the_models_are_published_with(name: str, billions: float):
    assert CATALOGUE[f"Qwen/Qwen2.5-{name}-Instruct"].parameters == round(billions * 1e9)


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (LlamaForCausalLM, LlamaConfig(**SMALL)),
        (Qwen2ForCausalLM, Qwen2Config(**SMALL)),
        (Qwen2ForCausalLM, Qwen2Config(**{**SMALL, "tie_word_embeddings": True})),
        (Qwen3ForCausalLM, Qwen3Config(**SMALL, head_dim=16)),
    ],
)
def test_a_config_json_counts_as_transformers_builds_it(model, config, tmp_path: Path):
    config.save_pretrained(tmp_path)
    shape = shape_of_config(json.loads((tmp_path / "config.json").read_text()), "config.json")
    with torch.device("meta"):
        built = model(config)
    assert shape.parameters == sum(weight.numel() for weight in built.parameters())


def test_the_shipped_base_counts_as_its_weights_file_says():
    with (TINY / "model.safetensors").open("rb") as file:
        head = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    held = sum(torch.Size(tensor["shape"]).numel() for name, tensor in head.items() if name != "__metadata__")
    assert shape_of_config(json.loads((TINY / "config.json").read_text()), "tiny").parameters == held


@pytest.mark.parametrize("names", [("q_proj", "k_proj", "v_proj", "o_proj"), ALL_LINEAR.target_modules, ("down_proj",)])
def test_adapters_count_as_peft_makes_them(names: tuple[str, ...]):
    config = Qwen2Config(**SMALL)
    shape = shape_of_config(config.to_dict(), "small")
    with torch.device("meta"):
        adapted = get_peft_model(Qwen2ForCausalLM(config), LoraConfig(r=4, target_modules=list(names)))
    made = sum(weight.numel() for name, weight in adapted.named_parameters() if "lora_" in name)
    assert lora_parameters(shape, Lora(4, 8, names), fused=False) == made


def test_megatrons_fused_adapters_by_hand():
    # rank 32 over 80 layers: q,k,v 8192 + 10240; o 8192 + 8192; gate,up 8192 + 57344; down 28672 + 8192
    assert lora_parameters(CATALOGUE[LLAMA], ALL_LINEAR, fused=True) == 80 * 32 * (18432 + 16384 + 65536 + 36864) == 351_272_960


@pytest.mark.parametrize(
    ("config", "said"),
    [({"num_local_experts": 8, "hidden_size": 64}, "mixture of experts"), ({"hidden_size": 64}, "num_hidden_layers"), ({}, "vocab_size")],
)
def test_a_config_that_cannot_be_counted_is_refused(config: dict, said: str):
    with pytest.raises(UserError, match=said):
        shape_of_config(config, "config.json")
