"""Triton seam: the backend `TRITON_ATTN` with edited rows, registered in its place."""

from vllm.v1.attention.backends.triton_attn import (
    TritonAttentionBackend,
    TritonAttentionImpl,
    TritonAttentionMetadataBuilder,
)

from heed_server.engine.running.backend_cuda import EditingBuilder, EditingImpl


class HeedTritonAttentionMetadataBuilder(EditingBuilder, TritonAttentionMetadataBuilder):  # type: ignore[misc]
    """The stock builder; a step with edited rows carries them along."""


class HeedTritonAttentionImpl(EditingImpl, TritonAttentionImpl):  # type: ignore[misc]
    """The stock implementation, with edited rows written by Heed's kernel."""


class HeedTritonAttentionBackend(TritonAttentionBackend):  # type: ignore[misc]
    """Takes the place of `TRITON_ATTN` and keeps its name."""

    @staticmethod
    def get_impl_cls() -> type[HeedTritonAttentionImpl]:
        return HeedTritonAttentionImpl

    @staticmethod
    def get_builder_cls() -> type[HeedTritonAttentionMetadataBuilder]:
        return HeedTritonAttentionMetadataBuilder
