import pytest
import torch
from tests.kernels.triton.interpreter import interpret

interpret()


@pytest.fixture(autouse=True, scope="module")
def poisoned():
    """Memory that nobody has written holds NaN, or integers that point nowhere: whoever uses it shows."""

    def poisoning(make):
        def made(*arguments, **options):
            tensor = make(*arguments, **options)
            if tensor.is_floating_point():
                tensor.fill_(torch.nan)
            elif tensor.dtype != torch.bool:
                tensor.fill_(torch.iinfo(tensor.dtype).max - 2)
            return tensor

        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "empty", poisoning(torch.empty))
        patch.setattr(torch, "empty_like", poisoning(torch.empty_like))
        patch.setattr(torch.Tensor, "new_empty", poisoning(torch.Tensor.new_empty))
        yield
