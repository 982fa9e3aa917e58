// Gram entries of up to three lists: reads each present operand once, 4 bytes per element and list in fp32. Deterministic.
//
// One list is compiled apart, because it is the norm of every step; otherwise an absent list aliases a present one and its entries
// are dropped. The same reduction serves descend_ where a coefficient needs a norm.
#include "chunk_loop.h"
#include "lanes.h"

namespace samk {
namespace {

template <class T>
struct Operands {
  const T *g, *h, *q, *w;
};

template <class T>
SAMK_INLINE void one_list(const T* x, const T* w, T eta, int64_t n, double& sum) {
  Lanes<T, 1> lanes;
  if (w)
    lanes.add(n, [=](int64_t i, T* out) __attribute__((always_inline)) {
      const T c = adaptive_scale(w[i], eta) * x[i];
      out[0] = c * c;
    });
  else
    lanes.add(n, [=](int64_t i, T* out) __attribute__((always_inline)) { out[0] = x[i] * x[i]; });
  sum = lanes.total(0);
}

template <class T>
SAMK_INLINE void all_lists(const Operands<T>& x, T eta, int64_t n, double* row) {
  const T* any = x.g ? x.g : x.h ? x.h : x.q;
  const T *g = or_else(x.g, any), *h = or_else(x.h, any), *q = or_else(x.q, any), *w = or_else(x.w, any);
  const bool weighted = x.w != nullptr;
  Lanes<T, kGram> lanes;
  lanes.add(n, [=](int64_t i, T* out) __attribute__((always_inline)) {
    const T c = weighted ? adaptive_scale(w[i], eta) : T(1);
    gram_terms(c * g[i], c * h[i], c * q[i], out);
  });
  const T has_g = x.g != nullptr, has_h = x.h != nullptr, has_q = x.q != nullptr;
  T present[kGram];
  gram_terms(has_g, has_h, has_q, present);
  for (int k = 0; k < kGram; ++k) row[k] = present[k] != 0 ? lanes.total(k) : 0;
}

template <class T>
SAMK_INLINE void gram_chunk(const Operands<T>& x, T eta, int64_t n, double* row) {
  if (!x.h && !x.q) return one_list(x.g, x.w, eta, n, row[kGG]);
  if (!x.g && !x.q) return one_list(x.h, x.w, eta, n, row[kHH]);
  if (!x.g && !x.h) return one_list(x.q, x.w, eta, n, row[kQQ]);
  all_lists(x, eta, n, row);
}

SAMK_CLONES void gram_chunk_of(const Operands<float>& x, float eta, int64_t n, double* row) { gram_chunk(x, eta, n, row); }
SAMK_CLONES void gram_chunk_of(const Operands<double>& x, double eta, int64_t n, double* row) { gram_chunk(x, eta, n, row); }

}  // namespace

template <class T>
void reduce_gram(const TensorTable& table, int lists, bool weighted, T eta, ParallelFor parallel_for, double (&total)[kGram]) {
  reduce_chunks(table, parallel_for, total, [&](const Chunk& chunk, double* row) {
    const auto at = [&](bool present, Operand operand) { return present ? chunk_data<const T>(table, chunk, operand) : nullptr; };
    gram_chunk_of({at(lists & 1, kG), at(lists & 2, kH), at(lists & 4, kQ), at(weighted, kW)}, eta, chunk.end - chunk.begin, row);
  });
}

template void reduce_gram<float>(const TensorTable&, int, bool, float, ParallelFor, double (&)[kGram]);
template void reduce_gram<double>(const TensorTable&, int, bool, double, ParallelFor, double (&)[kGram]);

template <class T>
static void inner_products(const InnerProductsArgs& args, ParallelFor parallel_for) {
  const TensorTable& table = args.table;
  const int lists = int(table.has(kG)) | int(table.has(kH)) << 1 | int(table.has(kQ)) << 2;
  double total[kGram] = {};
  if (lists) reduce_gram<T>(table, lists, table.has(kW), T(args.eta), parallel_for, total);
  for (int k = 0; k < kGram; ++k) static_cast<T*>(args.gram)[k] = T(total[k]);
}

void cpu_inner_products(const InnerProductsArgs& args, ParallelFor parallel_for) {
  args.dtype == kFloat32 ? inner_products<float>(args, parallel_for) : inner_products<double>(args, parallel_for);
}

}  // namespace samk
