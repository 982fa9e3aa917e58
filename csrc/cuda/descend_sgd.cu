#include "descend.cuh"

template int samk::descend_with<samk::Sgd>(const samk::DescendArgs&, int64_t, const samk::Place&);
