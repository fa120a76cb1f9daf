"""Small operations run on one thread, also in a worker that has taken `set_num_threads` away."""

from collections.abc import Iterator

import pytest
import torch

from heed_kernels.eviction.threads import one_thread


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch._C.set_num_threads(before)


@pytest.mark.usefixtures("three_threads")
def test_one_thread_inside_and_as_many_as_before_outside() -> None:
    assert one_thread(torch.get_num_threads)() == 1
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_an_error_gives_the_threads_back() -> None:
    with pytest.raises(IndexError):
        one_thread([].pop)()
    assert torch.get_num_threads() == 3


@pytest.mark.usefixtures("three_threads")
def test_a_worker_that_refuses_to_set_threads_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(threads: int) -> None:
        raise AssertionError("vLLM's worker on the CPU logs a warning here and sets nothing")

    monkeypatch.setattr(torch, "set_num_threads", refused)
    assert one_thread(torch.get_num_threads)() == 1
    assert torch.get_num_threads() == 3
