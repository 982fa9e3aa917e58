// Gram entries of up to three lists: reads each present operand once, 4 bytes per element and list in fp32. Deterministic.
//
// One list is compiled apart, because it is the norm of every step; otherwise an absent list aliases a present one and its entries
// are dropped. The same reduction serves descend_ where a coefficient needs a norm.
#include "lanes.h"
#include "stage.h"

namespace samk {
namespace {

template <class A>
struct Block {
  const A *g, *h, *q, *w;  // w is null where the products are not weighted
  int64_t n;
};

template <class A>
SAMK_INLINE void one_list(const A* x, const A* w, A eta, int64_t n, Lanes<A, 1>& sum) {
  Lanes<A, 1> lanes = sum;  // in registers
  if (w)
    lanes.add(n, [=](int64_t i, A* out) __attribute__((always_inline)) {
      const A c = adaptive_scale(w[i], eta) * x[i];
      out[0] = c * c;
    });
  else
    lanes.add(n, [=](int64_t i, A* out) __attribute__((always_inline)) { out[0] = x[i] * x[i]; });
  sum = lanes;
}

template <class A>
SAMK_INLINE void all_lists(const Block<A>& x, A eta, Lanes<A, kGram>& sum) {
  const A *g = x.g, *h = x.h, *q = x.q, *w = or_else(x.w, x.g);
  const bool weighted = x.w != nullptr;
  Lanes<A, kGram> lanes = sum;
  lanes.add(x.n, [=](int64_t i, A* out) __attribute__((always_inline)) {
    const A c = weighted ? adaptive_scale(w[i], eta) : A(1);
    gram_terms(c * g[i], c * h[i], c * q[i], out);
  });
  sum = lanes;
}

#define SAMK_GRAM_CLONES(A)                                                                                                \
  SAMK_CLONES void one_of(const A* x, const A* w, A eta, int64_t n, Lanes<A, 1>& sum) { one_list(x, w, eta, n, sum); }     \
  SAMK_CLONES void all_of(const Block<A>& x, A eta, Lanes<A, kGram>& sum) { all_lists(x, eta, sum); }
SAMK_GRAM_CLONES(float)
SAMK_GRAM_CLONES(double)

// The lists of one chunk; those that are not asked for are null.
template <class T>
struct Slices {
  const T *g, *h, *w;
  const Acc<T>* q;
  int64_t n;
};

template <class T>
void gram_chunk(const Slices<T>& chunk, Acc<T> eta, double* row) {
  using A = Acc<T>;
  const bool one = (chunk.g != nullptr) + (chunk.h != nullptr) + (chunk.q != nullptr) == 1;
  Scratch<T> room_g, room_h, room_w;
  Lanes<A, 1> square;
  Lanes<A, kGram> sums;
  for_each_block(chunk.n, kStep<T>, [&](int64_t begin, int64_t n) {
    const A *g = widened(offset(chunk.g, begin), n, room_g), *h = widened(offset(chunk.h, begin), n, room_h);
    const A *q = offset(chunk.q, begin), *w = widened(offset(chunk.w, begin), n, room_w), *any = g ? g : h ? h : q;
    one ? one_of(any, w, eta, n, square) : all_of({or_else(g, any), or_else(h, any), or_else(q, any), w, n}, eta, sums);
  });
  double present[kGram];
  gram_terms(double(chunk.g != nullptr), double(chunk.h != nullptr), double(chunk.q != nullptr), present);
  for (int k = 0; k < kGram; ++k)
    if (present[k] != 0) row[k] = one ? square.total(0) : sums.total(k);
}

}  // namespace

template <class T>
void reduce_gram(const TensorTable& table, int lists, bool weighted, Acc<T> eta, ParallelFor parallel_for, double (&total)[kGram]) {
  reduce_chunks(table, parallel_for, total, [&](const Chunk& chunk, double* row) {
    const auto g = chunk_data<const T>(table, chunk, kG), h = chunk_data<const T>(table, chunk, kH);
    const auto w = chunk_data<const T>(table, chunk, kW);
    const auto q = chunk_data<const Acc<T>>(table, chunk, kQ);
    const int64_t n = chunk.end - chunk.begin;
    gram_chunk(Slices<T>{lists & 1 ? g : nullptr, lists & 2 ? h : nullptr, weighted ? w : nullptr, lists & 4 ? q : nullptr, n}, eta, row);
  });
}

template void reduce_gram<float>(const TensorTable&, int, bool, float, ParallelFor, double (&)[kGram]);
template void reduce_gram<double>(const TensorTable&, int, bool, double, ParallelFor, double (&)[kGram]);
template void reduce_gram<BFloat16>(const TensorTable&, int, bool, float, ParallelFor, double (&)[kGram]);
template void reduce_gram<Float16>(const TensorTable&, int, bool, float, ParallelFor, double (&)[kGram]);

void cpu_inner_products(const InnerProductsArgs& args, ParallelFor parallel_for) {
  with_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    const TensorTable& table = args.table;
    const int lists = int(table.has(kG)) | int(table.has(kH)) << 1 | int(table.has(kQ)) << 2;
    double total[kGram] = {};
    if (lists) reduce_gram<T>(table, lists, table.has(kW), Acc<T>(args.eta), parallel_for, total);
    for (int k = 0; k < kGram; ++k) static_cast<Acc<T>*>(args.gram)[k] = Acc<T>(total[k]);
  });
}

}  // namespace samk
