// Gibbs weights: two reads of the norms (largest and sum; exponentials) and one more pass over the weights, in L2 for any batch.
//
// In chunks of fixed size whose partial sums are combined in order: equal bits for any number of threads.
#include "lanes.h"
#include "losses.h"

namespace samk {
namespace {

constexpr int64_t kGrain = 8;  // chunks that are worth another thread

template <class A>
struct Facts {  // of the finite norms
  A largest = A(-INFINITY);
  double count = 0, sum = 0;
};

template <class A>
SAMK_INLINE void look_at(const A* s, int64_t n, bool summed, Facts<A>& facts) {
  constexpr int kLanes = 32;
  A largest[kLanes];
  for (A& x : largest) x = A(-INFINITY);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) largest[k] = is_finite(s[i + k]) && s[i + k] > largest[k] ? s[i + k] : largest[k];
  for (; i < n; ++i) largest[0] = is_finite(s[i]) && s[i] > largest[0] ? s[i] : largest[0];
  for (A x : largest) facts.largest = x > facts.largest ? x : facts.largest;
  Lanes<A, 1> finite;
  finite.add(n, [=](int64_t i, A* out) __attribute__((always_inline)) { out[0] = is_finite(s[i]) ? A(1) : A(0); });
  facts.count += finite.total(0);
  if (!summed) return;
  Lanes<double, 1> sum;  // norms may be so large that fp32 does not hold their sum
  sum.add(n, [=](int64_t i, double* out) __attribute__((always_inline)) { out[0] = is_finite(s[i]) ? double(s[i]) : 0.0; });
  facts.sum += sum.total(0);
}

template <class A>
SAMK_INLINE void weigh(const A* s, A* __restrict weights, int64_t n, const Gibbs<A>& by, double (&total)[2]) {
  const Gibbs<A> gibbs = by;
  Lanes<A, 2> sums;
  sums.add(n, [=](int64_t i, A* out) __attribute__((always_inline)) {
    const A e = gibbs.term(s[i]);
    weights[i] = e;
    out[0] = e;
    out[1] = e * e;
  });
  for (int k = 0; k < 2; ++k) total[k] += sums.total(k);
}

template <class A>
SAMK_INLINE void scale(A* weights, int64_t n, A factor) {
  for (int64_t i = 0; i < n; ++i) weights[i] *= factor;
}

#define SAMK_GIBBS_CLONES(A)                                                                                              \
  SAMK_CLONES void facts_of(const A* s, int64_t n, bool summed, Facts<A>& facts) { look_at(s, n, summed, facts); }        \
  SAMK_CLONES void weights_of(const A* s, A* out, int64_t n, const Gibbs<A>& by, double (&sum)[2]) { weigh(s, out, n, by, sum); } \
  SAMK_CLONES void scale_by(A* weights, int64_t n, A factor) { scale(weights, n, factor); }
SAMK_GIBBS_CLONES(float)
SAMK_GIBBS_CLONES(double)

template <class T>
void run(const GibbsArgs& args, ParallelFor parallel_for) {
  using A = Acc<T>;
  const T* norms = static_cast<const T*>(args.norms);
  A* weights = static_cast<A*>(args.weights);
  const size_t chunks = size_t((args.count + kCpuChunk - 1) / kCpuChunk);
  std::vector<Facts<A>> facts(chunks);
  for_each_range(args.count, kGrain, parallel_for, [&](int64_t chunk, int64_t begin, int64_t end) {
    Scratch<T> room;
    for_each_block(end - begin, kStep<T>, [&](int64_t i, int64_t n) {
      facts_of(widened(norms + begin + i, n, room), n, args.relative, facts[size_t(chunk)]);
    });
  });
  Facts<A> all;
  for (const Facts<A>& part : facts) all = {std::max(all.largest, part.largest), all.count + part.count, all.sum + part.sum};
  const A lam = args.lam_device ? *static_cast<const A*>(args.lam_device) : A(args.lam);
  const Gibbs<A> gibbs = Gibbs<A>::make(lam, all.count, all.sum, all.largest, args.relative);
  struct Sums {
    double of[2] = {};
  };
  std::vector<Sums> partial(chunks);
  for_each_range(args.count, kGrain, parallel_for, [&](int64_t chunk, int64_t begin, int64_t end) {
    Scratch<T> room;
    for_each_block(end - begin, kStep<T>, [&](int64_t i, int64_t n) {
      weights_of(widened(norms + begin + i, n, room), weights + begin + i, n, gibbs, partial[size_t(chunk)].of);
    });
  });
  double total[2] = {};
  for (const Sums& part : partial)
    for (int k = 0; k < 2; ++k) total[k] += part.of[k];
  const A factor = A(1 / total[0]);
  for_each_range(args.count, kGrain, parallel_for, [&](int64_t, int64_t begin, int64_t end) {
    scale_by(weights + begin, end - begin, factor);
  });
  *static_cast<A*>(args.ess) = A(args.count ? total[0] * total[0] / total[1] : 0);
  *static_cast<A*>(args.log_partition) = args.count ? gibbs.log_partition(A(total[0])) : A(0);
  *args.flag = all.count == double(args.count) ? 0 : all.count > 0 ? 1 : 2;
}

}  // namespace

void cpu_gibbs_weights(const GibbsArgs& args, ParallelFor parallel_for) {
  with_type(args.dtype, [&](auto type) { run<decltype(type)>(args, parallel_for); });
}

}  // namespace samk
