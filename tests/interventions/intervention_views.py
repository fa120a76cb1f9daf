"""Models and prompts that the tests of this folder share."""

from dataclasses import replace

from heed_interventions import ImageSpan, ModelView, PromptView, TokenText

MODEL = ModelView(layers=4, query_heads=8, kv_heads=2, head_dim=16, max_length=512)
VISION = replace(MODEL, vision=True, hidden_size=128, sink_dims=(5, 77))
IMAGE = ImageSpan(3, 9)
EVERY_HEAD = (0xFF,) * 4


def prompt(length: int = 20, images: tuple[ImageSpan, ...] = ()) -> PromptView:
    """A prompt whose token i is the one character `chr(ord("a") + i % 26)`."""
    text = "".join(chr(ord("a") + i % 26) for i in range(length))
    return PromptView(length, lambda: TokenText(text, range(length), range(1, length + 1)), images)
