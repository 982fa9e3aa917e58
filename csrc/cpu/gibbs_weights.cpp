// Gibbs weights: two reads of the norms (largest and sum; exponentials) and one more pass over the weights, in L2 for any batch.
//
// In chunks of fixed size whose partial sums are combined in order: equal bits for any number of threads.
#include "lanes.h"
#include "losses.h"

namespace samk {
namespace {

template <class A>
struct Facts {  // of the finite norms
  A largest = A(-INFINITY);
  double count = 0, sum = 0;
};

template <class A>
SAMK_INLINE void look_at(const A* s, int64_t n, Facts<A>& facts) {
  constexpr int kLanes = 32;
  A largest[kLanes];
  for (A& x : largest) x = A(-INFINITY);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes)
    for (int k = 0; k < kLanes; ++k) largest[k] = is_finite(s[i + k]) && s[i + k] > largest[k] ? s[i + k] : largest[k];
  for (; i < n; ++i) largest[0] = is_finite(s[i]) && s[i] > largest[0] ? s[i] : largest[0];
  for (A x : largest) facts.largest = x > facts.largest ? x : facts.largest;
  Lanes<double, 2> sums;  // norms may be so large that fp32 does not hold their sum
  sums.add(n, [=](int64_t i, double* out) __attribute__((always_inline)) {
    const bool finite = is_finite(s[i]);
    out[0] = finite ? double(s[i]) : 0.0;
    out[1] = finite ? 1.0 : 0.0;
  });
  facts.sum += sums.total(0);
  facts.count += sums.total(1);
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
  SAMK_CLONES void facts_of(const A* s, int64_t n, Facts<A>& facts) { look_at(s, n, facts); }                             \
  SAMK_CLONES void weights_of(const A* s, A* out, int64_t n, const Gibbs<A>& by, double (&sum)[2]) { weigh(s, out, n, by, sum); } \
  SAMK_CLONES void scale_by(A* weights, int64_t n, A factor) { scale(weights, n, factor); }
SAMK_GIBBS_CLONES(float)
SAMK_GIBBS_CLONES(double)

// body(chunk, begin, end)
template <class Body>
void for_each_range(int64_t n, ParallelFor parallel_for, const Body& body) {
  struct Context {
    int64_t n;
    const Body& body;
  } context{n, body};
  const auto range = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    for (int64_t i = begin; i < end; ++i) c.body(i, i * kCpuChunk, std::min<int64_t>(c.n, (i + 1) * kCpuChunk));
  };
  parallel_for((n + kCpuChunk - 1) / kCpuChunk, 1, range, &context);
}

template <class T>
void run(const GibbsArgs& args, ParallelFor parallel_for) {
  using A = Acc<T>;
  const T* norms = static_cast<const T*>(args.norms);
  A* weights = static_cast<A*>(args.weights);
  const size_t chunks = size_t((args.count + kCpuChunk - 1) / kCpuChunk);
  std::vector<Facts<A>> facts(chunks);
  for_each_range(args.count, parallel_for, [&](int64_t chunk, int64_t begin, int64_t end) {
    Scratch<T> room;
    for_each_block(end - begin, kStep<T>, [&](int64_t i, int64_t n) {
      facts_of(widened(norms + begin + i, n, room), n, facts[size_t(chunk)]);
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
  for_each_range(args.count, parallel_for, [&](int64_t chunk, int64_t begin, int64_t end) {
    Scratch<T> room;
    for_each_block(end - begin, kStep<T>, [&](int64_t i, int64_t n) {
      weights_of(widened(norms + begin + i, n, room), weights + begin + i, n, gibbs, partial[size_t(chunk)].of);
    });
  });
  double total[2] = {};
  for (const Sums& part : partial)
    for (int k = 0; k < 2; ++k) total[k] += part.of[k];
  const A factor = A(1 / total[0]);
  for_each_range(args.count, parallel_for, [&](int64_t, int64_t begin, int64_t end) { scale_by(weights + begin, end - begin, factor); });
  *static_cast<A*>(args.ess) = A(args.count ? total[0] * total[0] / total[1] : 0);
  *static_cast<A*>(args.log_partition) = args.count ? gibbs.log_partition(A(total[0])) : A(0);
  *args.flag = all.count == double(args.count) ? 0 : all.count > 0 ? 1 : 2;
}

}  // namespace

void cpu_gibbs_weights(const GibbsArgs& args, ParallelFor parallel_for) {
  with_type(args.dtype, [&](auto type) { run<decltype(type)>(args, parallel_for); });
}

}  // namespace samk
