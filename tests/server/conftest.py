from collections.abc import Iterator

import pytest
from vllm.config import VllmConfig, set_current_vllm_config


@pytest.fixture
def default_vllm_config() -> Iterator[None]:
    """vLLM's layers ask for a current configuration when they are made."""
    with set_current_vllm_config(VllmConfig()):
        yield
