"""The C++ kernels of ``fastpower._C`` on CPU tensors.

One module per operator, which allocates the outputs and passes pointers. Arguments were checked by the façade.
"""
