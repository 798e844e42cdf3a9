// Entry points about the library itself; both work on a machine without a GPU.
#include "launch.h"

// Raised by one whenever a signature of the C interface changes; fastpower/kernels/cuda refuses another
// number.
FASTPOWER_API int fastpower_interface_version() { return 1; }

FASTPOWER_API const char* fastpower_error_string(int error) {
  return cudaGetErrorString(static_cast<cudaError_t>(error));
}
