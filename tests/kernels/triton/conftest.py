from tests.kernels.triton.interpreter import interpret

interpret()
