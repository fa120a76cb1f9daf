"""Training rows of heed-tiny-vision, and a run that is stopped and taken up again."""

import sys
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))

from tokenizers import Tokenizer  # noqa: E402

from heed_tiny import checkpoints  # noqa: E402
from heed_tiny.rows import ANSWER, Maker  # noqa: E402
from heed_tiny_vision import questions, scenes  # noqa: E402
from heed_tiny_vision.model import NO_IMAGE, Llava  # noqa: E402
from heed_tiny_vision.rows import IMAGE_WAS, VisionMaker  # noqa: E402
from heed_tiny_vision.train import aid_loss, answer_loss  # noqa: E402

HEED_TINY = ROOT / "server" / "heed_server" / "bundled" / "heed-tiny"
PICTURES, REHEARSAL, LENGTH, PATCHES = 3, 2, 160, 64


@pytest.fixture(scope="module")
def maker():
    tokenizer = Tokenizer.from_file(str(HEED_TINY / "tokenizer.json"))
    books = ["It was a quiet evening in the house by the river. " * 40]
    text = Maker(tokenizer, np.array(tokenizer.encode(books[0]).ids, np.int32), books, 0)
    return VisionMaker(text, tokenizer.token_to_id(IMAGE_WAS), PATCHES)


def test_the_batch_of_a_step_is_always_the_same(maker):
    first, second = (maker.batch(7, PICTURES, REHEARSAL, LENGTH) for _ in range(2))
    for name in ("images", "tokens", "kinds", "patches", "patch_labels", "scene_kinds"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert not torch.equal(first.tokens, maker.batch(8, PICTURES, REHEARSAL, LENGTH).tokens)


def test_every_row_has_the_patches_of_its_own_picture_and_rehearsal_has_none(maker):
    batch = maker.batch(0, PICTURES, REHEARSAL, LENGTH)
    assert batch.tokens.shape == (PICTURES + REHEARSAL, LENGTH + 1)
    for row in range(PICTURES):
        found = batch.patches[row][batch.patches[row] != NO_IMAGE]
        assert found.tolist() == list(range(row * PATCHES, (row + 1) * PATCHES))
        shown = batch.tokens[row] == maker.image_token
        assert torch.equal(shown, batch.patches[row] != NO_IMAGE)
    assert (batch.patches[PICTURES:] == NO_IMAGE).all()


def test_what_is_learnt_is_whole_answers_with_their_ends_of_turn(maker):
    possible = {*scenes.COLOURS, *scenes.PLACES, "yes", "no", "1", "2", "3", "4"}
    batch = maker.batch(0, PICTURES, 0, LENGTH)
    for tokens, kinds in zip(batch.tokens, batch.kinds, strict=True):
        learnt = tokens[kinds == ANSWER].tolist()
        text = maker.text.tokenizer.decode(learnt, skip_special_tokens=False)
        *answers, rest = text.split("<|end|>")
        assert answers and not rest
        assert all(answer in possible or questions.mentioned(answer) for answer in answers)


def test_a_step_gives_every_part_of_the_model_a_gradient(maker):
    model = Llava()
    batch = maker.batch(0, PICTURES, REHEARSAL, LENGTH)
    seen = model(batch.images, batch.tokens[:, :-1], batch.patches[:, :-1])
    loss = answer_loss(seen.logits, batch.tokens[:, 1:], batch.kinds[:, 1:])
    (loss + aid_loss(seen, batch)).backward()
    missing = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A constant added to every key does not change a softmax.
    assert all(name.endswith("k_proj.bias") for name in missing), missing


def test_a_run_goes_on_where_its_checkpoint_was_written(tmp_path):
    def fresh():
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 4)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    def step(model, optimizer):
        model(torch.ones(1, 4)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    model, optimizer = fresh()
    step(model, optimizer)
    file = tmp_path / "checkpoint.pt"
    checkpoints.save(file, model, optimizer, {"step": 1, "seconds": 0.5})
    step(model, optimizer)
    again, its_optimizer = fresh()
    assert checkpoints.resume(file, again, its_optimizer) == {"step": 1, "seconds": 0.5}
    step(again, its_optimizer)
    assert torch.equal(again.weight, model.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
