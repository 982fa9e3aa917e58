#include "ascend.cuh"

template int samk::ascend_with<true>(const samk::AscendArgs&, int64_t, const samk::Place&);
