#include "descend.cuh"

template int samk::descend_with<samk::Adam>(const samk::DescendArgs&, int64_t, const samk::Place&);
