import pytest

from heed_server.engine.versions import (
    SUPPORTED_VLLM,
    UnsupportedVllmError,
    installed_vllm,
    require_supported_vllm,
)


def test_the_installed_vllm_is_the_supported_one() -> None:
    require_supported_vllm(installed_vllm())


def test_a_local_build_of_the_supported_release_passes() -> None:
    require_supported_vllm(f"{SUPPORTED_VLLM}+cpu")


@pytest.mark.parametrize("found", ["0.31.9", "0.33.0", "0.32.1", None])
def test_another_vllm_is_refused_in_a_sentence_that_names_the_supported_one(
    found: str | None,
) -> None:
    with pytest.raises(UnsupportedVllmError, match=SUPPORTED_VLLM) as caught:
        require_supported_vllm(found)
    assert (found or "no vLLM") in str(caught.value)
