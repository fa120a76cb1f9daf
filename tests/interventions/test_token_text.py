"""Which tokens a text of the prompt is, for the kinds of tokenizers that models come with."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

from heed_interventions import AlignmentError, align
from heed_interventions.text import token_text as module

CORPUS = [
    "the quick brown fox jumps over the lazy dog",
    "été naïve 漢字 かな 👩‍👩‍👧 e\u0301 ñ",
    "a\n\tb  c",
]


class Fast:
    """The part of a Hugging Face fast tokenizer that is used."""

    def __init__(self, backend: Tokenizer) -> None:
        self.backend_tokenizer = backend

    def decode(
        self, ids: list[int], skip_special_tokens: bool, clean_up_tokenization_spaces: bool
    ) -> str:
        return self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def __call__(self, text: str) -> list[int]:
        return self.backend_tokenizer.encode(text).ids


class Slow:
    """A tokenizer of which only `decode` is known."""

    def __init__(self, fast: Fast) -> None:
        self.fast = fast

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return self.fast.decode(ids, skip_special_tokens, False)


def byte_level() -> Fast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {character: index for index, character in enumerate(alphabet)}
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("ð", "Ł"), ("æ", "¼")]
    for left, right in merges:
        vocabulary.setdefault(left + right, len(vocabulary))
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|im_start|>", "<|a b|>", "<image>"])
    tokenizer.add_tokens([AddedToken("« oui »", normalized=False)])
    return Fast(tokenizer)


def sentencepiece(decoder: Any) -> Fast:
    vocabulary = {"<unk>": 0, "<s>": 1, **{f"<0x{byte:02X}>": byte + 2 for byte in range(256)}}
    for piece in ["▁", "▁the", "th", "e", "é", "漢", *"abcdefghijklmnopqrstuvwxyz"]:
        vocabulary.setdefault(piece, len(vocabulary))
    merges = [("t", "h"), ("▁", "the"), ("th", "e")]
    vocabulary.setdefault("the", len(vocabulary))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, byte_fallback=True, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens(["<s>", "<image>"])
    return Fast(tokenizer)


def llama_decoder() -> Any:
    return decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )


def metaspace_decoder() -> Any:
    return decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])


def gemma_decoder() -> Any:
    return decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


TOKENIZERS = {
    "byte level": byte_level(),
    "llama": sentencepiece(llama_decoder()),
    "gemma": sentencepiece(gemma_decoder()),
    "metaspace": sentencepiece(metaspace_decoder()),
}
each_tokenizer = pytest.mark.parametrize("name", list(TOKENIZERS))
texts = st.lists(
    st.sampled_from(
        ["the", " the", "é", "漢", "👩‍👧", "e\u0301", "\n", "zq", "\x00", "<s>", "<|a b|>"]
    )
    | st.text(max_size=3),
    max_size=12,
).map("".join)


def decode(tokenizer: Fast, ids: list[int]) -> str:
    return tokenizer.decode(ids, False, False)


@each_tokenizer
@settings(max_examples=150)
@given(data=st.data())
def test_any_ids_are_aligned_exactly(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]
    size = tokenizer.backend_tokenizer.get_vocab_size()
    ids = data.draw(
        st.lists(st.integers(0, size - 1), max_size=30) | texts.map(lambda text: tokenizer(text))
    )
    text = decode(tokenizer, ids)
    spans = module._exact_spans(tokenizer, ids, text)
    assert spans is not None, "the exact alignment was given up"
    starts, ends = spans
    assert len(starts) == len(ends) == len(ids)
    assert all(a <= b for a, b in zip(starts, ends, strict=True))
    assert sorted(starts) == starts
    assert sorted(ends) == ends
    covered = set().union(*(range(a, b) for a, b in zip(starts, ends, strict=True)), set())
    assert covered == set(range(len(text)))


@each_tokenizer
@settings(max_examples=150)
@given(text=texts, data=st.data())
def test_a_part_of_a_text_is_found_at_tokens_that_decode_to_it(
    name: str, text: str, data: st.DataObject
) -> None:
    tokenizer = TOKENIZERS[name]
    ids = tokenizer(text)
    whole = align(tokenizer, ids)
    assert whole.text == decode(tokenizer, ids)
    if not whole.text:
        return
    start = data.draw(st.integers(0, len(whole.text) - 1))
    end = data.draw(st.integers(start + 1, len(whole.text)))
    part = whole.text[start:end]
    found = list(whole.find(part))
    assert len(found) == whole.text.count(part)
    for first, past in found:
        assert part.strip("\ufffd \n") in decode(tokenizer, ids[first:past])
        # No smaller range holds it: both outer tokens share a character with it.
        assert whole.ends[first] > whole.starts[first]
        assert whole.ends[past - 1] > whole.starts[past - 1]


def test_a_character_split_over_tokens_belongs_to_each_of_them() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer("a👧b")
    assert len(ids) == 5  # a, the first two bytes merged, two more bytes, b
    text = align(tokenizer, ids)
    assert list(text.find("👧")) == [(1, 4)]
    assert list(text.find("a")) == [(0, 1)]
    assert list(text.find("👧b")) == [(1, 5)]


def test_byte_fallback_splits_a_character_likewise() -> None:
    tokenizer = TOKENIZERS["llama"]
    ids = tokenizer("a👧b")
    text = align(tokenizer, ids)
    ((first, past),) = text.find("👧")
    assert past - first == 4
    assert list(text.find("b")) == [(past, past + 1)]


def test_special_and_added_tokens_are_part_of_the_text() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer("<|im_start|>the<|a b|>« oui »!")
    text = align(tokenizer, ids)
    assert list(text.find("<|im_start|>")) == [(0, 1)]
    assert list(text.find("<|a b|>")) == [(2, 3)]
    assert list(text.find("oui")) == [(3, 4)]


def test_occurrences_do_not_overlap() -> None:
    tokenizer = TOKENIZERS["byte level"]
    assert list(align(tokenizer, tokenizer("aaaaa")).find("aa")) == [(0, 2), (2, 4)]


def test_nothing_is_found_in_a_visual_placeholder() -> None:
    tokenizer = TOKENIZERS["byte level"]
    ids = tokenizer("x<image><image>y<image>")
    assert len(ids) == 5
    text = align(tokenizer, ids, opaque=[(1, 3)])
    assert list(text.find("<image>")) == [(4, 5)]
    assert list(text.find("image><")) == []
    assert list(text.find("y")) == [(3, 4)]


def test_a_tokenizer_that_only_decodes_is_aligned_step_by_step() -> None:
    fast = TOKENIZERS["byte level"]
    ids = fast("the a👧b<|im_start|> the é")
    text = align(Slow(fast), ids)
    exact = align(fast, ids)
    assert text.text == exact.text
    for part in ("👧", "the", " the", "<|im_start|>", "é", "a"):
        assert list(text.find(part)) == list(exact.find(part))


def test_an_unknown_decoder_falls_back_to_decoding() -> None:
    fast = sentencepiece(decoders.Sequence([decoders.Replace(Regex("▁+"), " "), decoders.Fuse()]))
    ids = fast("the cat the")
    text = align(fast, ids)
    assert text.text == decode(fast, ids)
    assert len(list(text.find("the"))) == 2


def test_a_text_that_cannot_be_aligned_is_an_error() -> None:
    class Odd:
        def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
            return f"{len(ids)} tokens"

    with pytest.raises(AlignmentError):
        align(Odd(), list(range(20)))


# A second is enough; time that is quadratic in 20,000 repetitions is more than an hour.
@pytest.mark.timeout(120)
@each_tokenizer
def test_alignment_takes_time_linear_in_the_prompt(name: str) -> None:
    tokenizer = TOKENIZERS[name]
    # Broken bytes are the worst case: every one of them is a replacement character.
    for token in ("é", "\ufffd"):
        ids = tokenizer(f"the a👧b {token} 漢")[2:-1] * 20_000
        text = align(tokenizer, ids)
        assert len(text.starts) == len(ids)


def test_an_empty_prompt_has_an_empty_text() -> None:
    assert align(TOKENIZERS["byte level"], []).text == ""
