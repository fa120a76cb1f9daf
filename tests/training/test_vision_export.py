"""The exported heed-tiny-vision is what was trained: logits, names, template and processor."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))

from tokenizers import Tokenizer  # noqa: E402

from heed_tiny.rows import Maker  # noqa: E402
from heed_tiny_vision import scenes  # noqa: E402
from heed_tiny_vision.export import export  # noqa: E402
from heed_tiny_vision.model import Llava, VisionShape, normalise  # noqa: E402
from heed_tiny_vision.pictures import render  # noqa: E402
from heed_tiny_vision.rows import IMAGE, VisionMaker  # noqa: E402

HEED_TINY = ROOT / "server" / "heed_server" / "bundled" / "heed-tiny"
LARGEST = 8_000_000  # bytes
QUESTION = "Is there a star?"
CHAT = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": QUESTION}],
    }
]


@pytest.fixture(scope="module")
def trained():
    """A training model with random weights that bf16 can hold."""
    torch.manual_seed(0)
    model = Llava().eval()
    for parameter in model.parameters():
        parameter.data = (4 * parameter.data).bfloat16().float()
    return model


@pytest.fixture(scope="module")
def exported(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("heed-tiny-vision")
    export(trained.state_dict(), VisionShape(), HEED_TINY, out)
    return out


@pytest.fixture(scope="module")
def maker(exported):
    tokenizer = Tokenizer.from_file(str(exported / "tokenizer.json"))
    text = Maker(tokenizer, np.zeros(0, np.int32), [], 0)
    return VisionMaker(text, tokenizer.token_to_id(IMAGE), VisionShape().tower.patches)


@pytest.fixture(scope="module")
def picture():
    return render(scenes.sample("test/picture", evaluation=False))


def test_transformers_computes_the_logits_of_the_training_model(trained, exported, maker, picture):
    theirs, report = transformers.LlavaForConditionalGeneration.from_pretrained(
        exported, dtype=torch.float32, output_loading_info=True
    )
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert set(report["missing_keys"]) <= {"lm_head.weight"}
    assert theirs.lm_head.weight is theirs.model.language_model.embed_tokens.weight
    tokens, patches = (torch.tensor([part]) for part in maker.prompt(QUESTION))
    image = normalise(picture[None])
    with torch.no_grad():
        expected = trained(image, tokens, patches).logits
        found = theirs.eval()(input_ids=tokens, pixel_values=image).logits
    ratio = ((found - expected).norm() / expected.norm()).item()
    assert ratio < 1e-5, f"relative RMS {ratio}"


def test_the_chat_template_writes_the_prompt_that_training_saw(exported, maker):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    assert text == f"<|bos|><|user|><image>{QUESTION}<|end|><|assistant|>"
    ids = tokenizer(text)["input_ids"]
    patches = VisionShape().tower.patches
    place = ids.index(tokenizer.convert_tokens_to_ids(IMAGE))
    assert ids[:place] + [ids[place]] * patches + ids[place + 1 :] == maker.prompt(QUESTION)[0]


def test_the_processor_gives_the_pixels_that_training_saw(exported, maker, picture):
    image = pytest.importorskip("PIL.Image").fromarray(picture)
    processor = transformers.AutoProcessor.from_pretrained(exported)
    text = processor.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    given = processor(images=image, text=text, return_tensors="pt")
    assert given["input_ids"][0].tolist() == maker.prompt(QUESTION)[0]
    torch.testing.assert_close(
        given["pixel_values"].float(), normalise(picture[None]), atol=1e-5, rtol=0
    )


def test_a_text_chat_reads_as_in_heed_tiny(exported):
    chat = [{"role": "user", "content": "Hi"}]
    ours, theirs = (
        transformers.AutoTokenizer.from_pretrained(directory) for directory in (exported, HEED_TINY)
    )
    assert ours.apply_chat_template(chat) == theirs.apply_chat_template(chat)


def test_the_export_is_small_enough_for_the_package(exported):
    assert sum(file.stat().st_size for file in exported.iterdir()) < LARGEST
