"""Networks of the libraries, tiny and with random weights: exact, structured where it counts."""

import math

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("timm")
pytest.importorskip("torchvision")

from torch import nn  # noqa: E402

import entk.torch  # noqa: E402
from bounds import assert_extracted  # noqa: E402
from entk import _forms  # noqa: E402
from torch_oracle import engines, error, in_type, kinds  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def ids(*shape):
    return torch.randint(1, 60, shape)


def resnet():
    import torchvision

    return torchvision.models.resnet18(num_classes=2), torch.randn(2, 3, 24, 24), None


def vit():
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 12, "patch_size": 6, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return VisionTransformer(num_classes=3, **sizes), torch.randn(2, 3, 12, 12), None


def convnext():
    from timm.models.convnext import ConvNeXt

    module = ConvNeXt(num_classes=3, depths=(1, 1, 1, 1), dims=(8, 16, 24, 32))
    return module, torch.randn(2, 3, 32, 32), None


def swin():
    from timm.models.swin_transformer import SwinTransformer

    module = SwinTransformer(
        img_size=8, patch_size=2, window_size=2, embed_dim=16, depths=(2, 1), num_heads=(2, 2),
        num_classes=3,
    )  # fmt: skip
    return module, torch.randn(2, 3, 8, 8), None


def last_logits(out):
    return out.logits[:, -1, :4]


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=60, n_positions=16, n_embd=16, n_layer=2, n_head=2)
    return GPT2LMHeadModel(config), {"input_ids": ids(3, 3)}, last_logits


def gpt2_with_padding():
    mask = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 1]])
    module, x, output = gpt2()
    return module, {**x, "attention_mask": mask}, output


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=40, num_labels=3,
    )  # fmt: skip
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 1, 1]])
    x = {"input_ids": ids(3, 3), "attention_mask": mask}
    return BertForSequenceClassification(config), x, None


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=32, max_position_embeddings=16,
    )  # fmt: skip
    return LlamaForCausalLM(config), {"input_ids": ids(3, 3)}, last_logits


def mixtral():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, num_local_experts=3,
        max_position_embeddings=16,
    )  # fmt: skip
    return MixtralForCausalLM(config), {"input_ids": ids(3, 2)}, last_logits


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=60, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2,
        decoder_start_token_id=0,
    )  # fmt: skip
    x = {"input_ids": ids(3, 3), "decoder_input_ids": ids(3, 2)}
    return T5ForConditionalGeneration(config), x, last_logits


class Translator(nn.Module):
    """The library's own encoder and decoder."""

    def __init__(self):
        super().__init__()
        self.t = nn.Transformer(16, 2, 1, 1, 32, batch_first=True)
        self.o = nn.Linear(16, 3)

    def forward(self, source, target):
        return self.o(self.t(source, target).mean(1))


def transformer():
    return Translator(), (torch.randn(3, 3, 16), torch.randn(3, 2, 16)), None


def lora():
    from peft import LoraConfig, get_peft_model

    module, x, output = gpt2()
    config = LoraConfig(r=2, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    return get_peft_model(module, config), x, output


ZOO = {
    make.__name__: make
    for make in (
        resnet, vit, convnext, swin, gpt2, gpt2_with_padding, bert, llama, mixtral, t5,
        transformer, lora,
    )
}  # fmt: skip


@pytest.mark.parametrize("name", ZOO)
def test_networks_of_the_libraries_are_exact(name):
    if name == "lora":
        pytest.importorskip("peft")
    module, x, output = ZOO[name]()
    name = "float32" if name == "mixtral" else "float64"  # its products know no other type
    module = in_type(module, getattr(torch, name)).eval()
    relative, factors = error(module, in_type(x, getattr(torch, name)), output=output)
    assert_extracted(relative, name)
    assert engines(factors) == "vmap"


@pytest.mark.parametrize("name", ZOO)
def test_no_matrix_is_dense_unless_that_is_smaller(name):
    if name == "lora":
        pytest.importorskip("peft")
    module, x, output = ZOO[name]()
    factors = entk.torch.factors(module.eval(), x, output=output)
    weights = {
        f"{prefix}.weight" if prefix else "weight"
        for prefix, layer in module.named_modules()
        if isinstance(layer, nn.Linear | nn.Embedding | nn.Conv2d)
        or type(layer).__name__ == "Conv1D"
    } | {n for n in factors if n.endswith("in_proj_weight")}
    seen = [n for n in factors if n.split("[")[0] in weights]
    assert seen
    for leaf in seen:
        if kinds(factors)[leaf] == "Dense":
            assert "dense is smaller" in factors.reason(leaf), leaf


def test_experts_are_blocks():
    module, x, output = mixtral()
    factors = entk.torch.factors(module.eval(), x, output=output)
    experts = {n: leaf for n, leaf in factors.items() if "experts" in n}
    assert [leaf.kind for leaf in experts.values()] == ["Outer", "Outer"]
    assert all(leaf.acts.shape[1] == 3 for leaf in experts.values())


def test_a_tied_language_model_is_structured_everywhere():
    module, x, output = gpt2()
    factors = entk.torch.factors(module.eval(), x, output=output)
    found = kinds(factors)
    assert found.pop("transformer.wte.weight") == "Tied"
    assert found.pop("transformer.wpe.weight") == "Lookup"
    shapes = {n: p.shape for n, p in module.named_parameters()}
    matrices = [n for n in found if len(shapes[n]) == 2]
    assert len(matrices) == 8
    for name in matrices:
        d_in, d_out = shapes[name]
        assert found[name] == _kind(3, d_in, d_out)
    readout = factors["transformer.wte.weight"].uses[1]
    assert readout.transposed
    assert math.prod(readout.cots.shape[1:]) == 180


def _kind(t, d_in, d_out):
    return {"outer": "Outer", "dense": "Dense"}[_forms.choose(t, d_in, d_out, 1)[0]]
