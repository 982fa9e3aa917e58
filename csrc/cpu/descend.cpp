// Restore and base update in one pass: w0 = stash, u = combination of (h, g, q), w = base(w0, u) - lr direct, q <- kept vector.
//
// SGD with momentum reads stash, h and the buffer and writes w and the buffer: 20 bytes per element in fp32, 14 in the half types;
// one operand more for each norm, for g, and for q read or written. Deterministic. A combination of several lists is built block by
// block in L1, one plain loop per list, which any compiler vectorises; u = c h alone goes straight into the update.
#include <algorithm>

#include "descend_block.h"
#include "stage.h"

namespace samk {
namespace {

template <class T>
struct Slices {  // one chunk, or a block of it
  T* w;
  const T *stash, *h, *g;
  Acc<T> *q, *m, *v, *v_max;
  int64_t n;

  Slices block(int64_t by, int64_t size) const {
    return {w + by, offset(stash, by), offset(h, by), offset(g, by), offset(q, by), offset(m, by), offset(v, by), offset(v_max, by), size};
  }
};

// out = combination of the lists that have a factor
template <class T>
void combine(const Factors<Acc<T>>& factors, DescendOutput output, const Slices<T>& x, Acc<T>* out) {
  const Acc<T>(&c)[kInputs] = factors.of[output];
  Scratch<T> room;
  std::fill_n(out, x.n, Acc<T>(0));
  if (c[kInH] != 0 && x.h) add_block(c[kInH], widened(x.h, x.n, room), out, x.n);
  if (c[kInG] != 0 && x.g) add_block(c[kInG], widened(x.g, x.n, room), out, x.n);
  if (c[kInQ] != 0 && x.q) add_block(c[kInQ], x.q, out, x.n);
}

template <class A>
struct Options {
  Factors<A> factors;
  bool plain, direct;  // u is a multiple of h; there is a direct term
  bool decay_at_perturbed, stream;
};

template <class T, class U>
void update_chunk(const Slices<T>& chunk, const U& base, const Options<Acc<T>>& options) {
  using A = Acc<T>;
  const bool reads_w = options.decay_at_perturbed && base.decays() && chunk.stash;  // then it is in cache already
  const bool stream = options.stream && chunk.stash && !reads_w, direct = options.direct;
  Scratch<T> room_stash, room_w, room_h;
  alignas(64) A combined[kBlock], beside[kBlock], updated[kBlock];
  for_each_block(chunk.n, kBlock, [&](int64_t begin, int64_t n) {
    const Slices<T> x = chunk.block(begin, n);
    const A *clean = widened<T>(x.stash ? x.stash : x.w, n, room_stash), *at = reads_w ? widened<T>(x.w, n, room_w) : clean;
    if (!options.plain) combine(options.factors, kU, x, combined);
    if (direct) combine(options.factors, kDirect, x, beside);
    const A *u = options.plain ? widened(x.h, n, room_h) : combined, factor = options.plain ? options.factors.of[kU][kInH] : A(1);
    A* out = stream && !kStaged<T> ? updated : target(x.w, room_w);
    update_block({n, factor, clean, at, u, direct ? beside : nullptr, out, x.m, x.v, x.v_max}, base);
    narrowed(out, x.w, n, stream);
  });
}

// Writes the kept vector and returns its squared norm.
template <class T>
double keep_chunk(const Slices<T>& chunk, const Factors<Acc<T>>& factors) {
  alignas(64) Acc<T> kept[kBlock];
  Lanes<Acc<T>, 1> square;
  for_each_block(chunk.n, kBlock, [&](int64_t begin, int64_t n) {
    combine(factors, kKept, chunk.block(begin, n), kept);
    sum_squares(kept, n, square);
    std::copy_n(kept, n, chunk.q + begin);
  });
  return square.total(0);
}

// Reduces the Gram entries that are missing, then multiplies out the coefficients.
template <class T>
Factors<Acc<T>> factors_of(const DescendArgs& args, ParallelFor parallel_for) {
  using A = Acc<T>;
  constexpr int lists_of[kGram] = {1, 3, 2, 5, 6, 4};
  A* gram = static_cast<A*>(args.gram);
  int lists = 0;
  for (int k = 0; k < kGram; ++k) lists |= args.reduced() >> k & 1 ? lists_of[k] : 0;
  if (lists) {
    double total[kGram];
    reduce_gram<T>(args.table, lists, false, A(0), parallel_for, total);
    for (int k = 0; k < kGram; ++k) gram[k] = args.reduced() >> k & 1 ? A(total[k]) : gram[k];
  }
  const bool bad_norm = args.sq_norm && !is_finite(*static_cast<const A*>(args.sq_norm));
  const bool skip = bad_norm || (args.found_inf && *args.found_inf != 0);
  return resolve(args.coefficients, gram, args.needed, args.match_norm, A(args.max_norm), args.loss_scale, skip);
}

// write(chunk, slices) gives w its new value.
template <class T, class Write>
void run(const DescendArgs& args, const Factors<Acc<T>>& factors, ParallelFor parallel_for, const Write& write) {
  using A = Acc<T>;
  const TensorTable& table = args.table;
  const bool keeps = args.write_q && !factors.skip;
  double kept_norm[1];
  reduce_chunks(table, parallel_for, kept_norm, [&, write = write](const Chunk& c, double* row) mutable {
    const auto at = [&](auto like, Operand operand) { return chunk_data<decltype(like)>(table, c, operand); };
    const Slices<T> x{at(T(), kW), at(T(), kStash), at(T(), kH), at(T(), kG), at(A(), kQ), at(A(), kM), at(A(), kV), at(A(), kVMax),
                      c.end - c.begin};
    write(c, x);
    if (keeps) row[0] = keep_chunk(x, factors);
  });
  if (keeps) static_cast<A*>(args.gram)[kQQ] = A(kept_norm[0]);
}

template <class T, class U>
void update(const DescendArgs& args, const Factors<Acc<T>>& factors, ParallelFor parallel_for) {
  using A = Acc<T>;
  const TensorTable& table = args.table;
  const A(&u)[kInputs] = factors.of[kU], (&d)[kInputs] = factors.of[kDirect];
  const bool plain = table.has(kH) && u[kInH] != 0 && u[kInG] == 0 && u[kInQ] == 0;
  const bool direct = d[kInH] != 0 || d[kInG] != 0 || d[kInQ] != 0;
  const Options<A> options{factors, plain, direct, args.decay_at_perturbed, streams(table, sizeof(T))};
  const auto make = [&](int32_t group, float steps) {
    const double* hyper = args.hyper + group * U::kHypers;
    return U::make(hyper, args.lr ? static_cast<const A*>(args.lr)[group] : A(hyper[kLr]), steps);
  };
  run<T>(args, factors, parallel_for, [&, base = Remembered<U>()](const Chunk& c, const Slices<T>& x) mutable {
    update_chunk(x, base.get(table.group[c.tensor], args.steps ? args.steps[c.tensor] : 1.0f, make), options);
  });
  Remembered<U> base;
  for (int32_t t = 0; args.steps && t < table.count; ++t) args.steps[t] += base.get(table.group[t], 1.0f, make).counts();
}

template <class T>
void restore(const DescendArgs& args, const Factors<Acc<T>>& factors, ParallelFor parallel_for) {
  run<T>(args, factors, parallel_for, [stream = streams(args.table, sizeof(T))](const Chunk&, const Slices<T>& x) {
    if (x.stash) copy(x.w, x.stash, x.n * int64_t(sizeof(T)), stream);
  });
}

}  // namespace

void cpu_descend(const DescendArgs& args, ParallelFor parallel_for) {
  with_type(args.dtype, [&](auto type) {
    using T = decltype(type);
    const Factors<Acc<T>> factors = factors_of<T>(args, parallel_for);
    const Base base = factors.skip ? kNone : args.base;
    if (base == kNone) restore<T>(args, factors, parallel_for);
    if (base == kSgd) update<T, Sgd<Acc<T>>>(args, factors, parallel_for);
    if (base == kAdam) update<T, Adam<Acc<T>>>(args, factors, parallel_for);
    if (base == kLion) update<T, Lion<Acc<T>>>(args, factors, parallel_for);
  });
}

}  // namespace samk
