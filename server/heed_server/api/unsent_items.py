"""Images of prompts that have been rendered and are not at the engine yet, or never will be.

vLLM sends an image's data once. Whoever renders the same image later sends its hash alone, trusting that the
data went before it, and where it did not the engine ends that request with an error. Stock vLLM sends what it
has rendered at once. Heed refuses some of it, and lets a request wait for its twin: the requests behind
those would pay for it.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary


class UnsentItems:
    """Of one engine client.

    cache: its renderer's cache of multi-modal items, None where it has none.
    """

    def __init__(self, cache: Any | None) -> None:
        self._cache = cache
        # Of prompts that wait; an item goes with its prompt, also where nobody waits for that any more.
        self._waiting: WeakValueDictionary[str, Any] = WeakValueDictionary()

    def forget(self, prompt: Mapping[str, Any]) -> None:
        """`prompt` is not going to be sent: the next one with its images brings their data along."""
        if self._cache is None:
            return
        for item_hash, item in _items(prompt):
            if item is not None:
                self._waiting.pop(item_hash, None)
                self._cache.invalidate(item_hash)

    def hold(self, prompt: Mapping[str, Any]) -> None:
        """`prompt` is going to wait: from now on others get its data."""
        self._waiting.update({key: item for key, item in _items(prompt) if item is not None})

    @contextmanager
    def waiting(self, prompt: Mapping[str, Any]) -> Iterator[None]:
        """While this is open, `prompt`, which is held, waits; it is sent then, unless there was an error."""
        try:
            yield
        except BaseException:
            self.forget(prompt)
            raise
        for item_hash, item in _items(prompt):
            if item is not None and self._waiting.get(item_hash) is item:
                self._waiting.pop(item_hash, None)

    def completed(self, prompt: Any) -> Any:
        """`prompt` with the data of images that other prompts have not brought to the engine yet."""
        if not self._waiting or not any(
            item is None and item_hash in self._waiting for item_hash, item in _items(prompt)
        ):
            return prompt
        kwargs = prompt["mm_kwargs"]
        filled = {
            modality: [
                self._waiting.get(item_hash) if item is None else item
                for item_hash, item in zip(hashes, kwargs[modality], strict=True)
            ]
            for modality, hashes in prompt["mm_hashes"].items()
        }
        return {**prompt, "mm_kwargs": type(kwargs)(filled)}


def _items(prompt: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Hashes and items of a rendered prompt; an item is None where its data went before."""
    kwargs = prompt.get("mm_kwargs") or {}
    for modality, hashes in (prompt.get("mm_hashes") or {}).items():
        yield from zip(hashes, kwargs.get(modality) or [None] * len(hashes), strict=True)
