"""The exported heed-tiny is what was trained: same logits in transformers, a chat template, Unicode."""

import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))

from heed_tiny import tasks  # noqa: E402
from heed_tiny.export import export  # noqa: E402
from heed_tiny.model import Llama  # noqa: E402

BUNDLED = ROOT / "server" / "heed_server" / "bundled" / "heed-tiny"


@pytest.fixture(scope="module")
def bundled_tokenizer():
    return transformers.AutoTokenizer.from_pretrained(BUNDLED)


def test_transformers_computes_the_logits_of_the_training_model(tmp_path):
    torch.manual_seed(0)
    ours = Llama().eval()
    for parameter in ours.parameters():
        parameter.data = (4 * parameter.data).bfloat16().float()
    export(ours.state_dict(), ours.shape, BUNDLED / "tokenizer.json", tmp_path)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    tokens = torch.randint(0, 2048, (2, 99))
    with torch.no_grad():
        expected, found = ours(tokens), theirs(tokens).logits
    ratio = ((found - expected).norm() / expected.norm()).item()
    assert ratio < 1e-5, f"relative RMS {ratio}"


def test_the_bundled_weights_load_completely_and_are_tied():
    model, report = transformers.AutoModelForCausalLM.from_pretrained(
        BUNDLED, output_loading_info=True
    )
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert set(report["missing_keys"]) <= {"lm_head.weight"}
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_the_chat_template_writes_one_bos_and_ends_every_turn(bundled_tokenizer):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
    ]
    text = bundled_tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|><|system|>Be brief.<|end|><|user|>Hi<|end|><|assistant|>"
    ids = bundled_tokenizer(text, add_special_tokens=True)["input_ids"]
    bos = bundled_tokenizer.bos_token_id
    assert ids.count(bos) == 1 and ids[0] == bos
    assert bundled_tokenizer.eos_token == "<|end|>"


@pytest.mark.parametrize(
    "text", [" leading", "naïve café", "数学 🙂\n\ttab", "\x00\x7f", "3.14159"]
)
def test_any_unicode_survives_the_tokenizer(bundled_tokenizer, text):
    assert bundled_tokenizer.is_fast
    assert bundled_tokenizer.decode(bundled_tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("task", tasks.EVALUATED, ids=lambda task: task.__name__)
def test_training_never_sees_an_item_of_the_evaluation_part(task):
    for number in range(50):
        for evaluation in (False, True):
            item = tasks.sample(task, f"test/{number}", [], 100, evaluation)
            assert tasks.for_evaluation(item) == evaluation
