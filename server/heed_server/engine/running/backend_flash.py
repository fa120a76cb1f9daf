"""FlashAttention seam: the backend `FLASH_ATTN` with edited rows, registered in its place."""

from vllm.v1.attention.backends.flash_attn import (
    FlashAttentionBackend,
    FlashAttentionImpl,
    FlashAttentionMetadataBuilder,
)

from heed_server.engine.running.backend_cuda import EditingBuilder, EditingImpl


class HeedFlashAttentionMetadataBuilder(EditingBuilder, FlashAttentionMetadataBuilder):  # type: ignore[misc]
    """The stock builder; a step with edited rows carries them along."""


class HeedFlashAttentionImpl(EditingImpl, FlashAttentionImpl):  # type: ignore[misc]
    """The stock implementation, with edited rows written by Heed's kernel."""


class HeedFlashAttentionBackend(FlashAttentionBackend):  # type: ignore[misc]
    """Takes the place of `FLASH_ATTN` and keeps its name."""

    @staticmethod
    def get_impl_cls() -> type[HeedFlashAttentionImpl]:
        return HeedFlashAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[HeedFlashAttentionMetadataBuilder]:
        return HeedFlashAttentionMetadataBuilder
