// Norm of the ascent direction, then stash = w, w += s c(w)^2 d, and the optional moving average of q.
//
// Reads g (w too where a group is adaptive, q where present), then reads w and g and writes w and stash: 20 bytes per element in
// fp32, 10 in the half types. Deterministic. The plain direction is compiled apart: it is SAM, and an absent q must not cost a read.
// The update does not walk its chunks backwards to find the last gradients in cache: that works against the prefetchers. It gains
// nothing for a ResNet-18, and lists of small tensors take more than half as long again.
// Random signs are drawn a block at a time into L1 and take the place of g: 512 elements cost four runs of the generator, and memory is
// read for w alone. Their norm needs neither where the direction is plain.
#include <optional>

#include "ascend_block.h"
#include "stage.h"

namespace samk {
namespace {

template <class T>
struct Slices {  // one chunk
  T *w, *stash;
  const T* g;
  Acc<T>* q;
  int64_t begin, n;
  std::optional<SignSource> signs;  // in the place of g
};

// Elements begin, ... of g in the accumulation type: in place, widened, or drawn.
template <class T>
class Gradient {
 public:
  const Acc<T>* operator()(const Slices<T>& chunk, int64_t begin, int64_t n) {
    if (!chunk.signs) return widened(offset(chunk.g, begin), n, room_);
    static_assert(kBlock % kSignsPerBlock == 0 && kCpuChunk % kBlock == 0, "blocks of a chunk begin with a block of signs");
    draw_signs(*chunk.signs, chunk.begin + begin, n, drawn_);
    return drawn_;
  }

 private:
  Scratch<T> room_;
  alignas(64) Acc<T> drawn_[kBlock];
};

// What the direction depends on; an operand that it does not depend on is replaced by another, and never read from memory.
template <class A>
AscendBlock<A> block_of(const Ascent<A>& ascent, const A* w, const A* g, const A* q, int64_t n) {
  const A *g_or_q = or_else(g, q), *q_or_g = ascent.direction[1] != A(0) ? or_else(q, g_or_q) : g_or_q;
  return {n, or_else(w, g_or_q), g_or_q, q_or_g};
}

template <class T>
void norm_chunk(const Slices<T>& chunk, const Ascent<Acc<T>>& ascent, bool counted, double* row) {
  using A = Acc<T>;
  const bool plain = !ascent.adaptive && ascent.direction[0] != A(0) && ascent.direction[1] == A(0);
  const double factor = double(ascent.direction[0]);  // plain: |d|^2 = direction[0]^2 |g|^2
  if (plain && chunk.signs) return void(row[kDirection] = counted ? factor * factor * double(chunk.n) : 0);
  Scratch<T> room_w;
  Gradient<T> gradient;
  Lanes<A, 1> square;
  Lanes<A, kAscendSums> sums;
  for_each_block(chunk.n, chunk.signs ? kBlock : kStep<T>, [&](int64_t begin, int64_t n) {
    const A* g = gradient(chunk, begin, n);
    if (plain) return sum_squares(g, n, square);
    const A* w = ascent.adaptive ? widened<T>(chunk.w + begin, n, room_w) : nullptr;
    sum_direction(block_of<A>(ascent, w, g, offset(chunk.q, begin), n), ascent, sums);
  });
  row[kGradient] = plain ? square.total(0) : chunk.g ? sums.total(kGradient) : 0;
  row[kDirection] = !counted ? 0 : plain ? factor * factor * row[kGradient] : sums.total(kDirection);
}

template <class T>
void update_chunk(const Slices<T>& chunk, const Ascent<Acc<T>>& ascent, const Average<Acc<T>>& average, bool stream) {
  using A = Acc<T>;
  const bool moves = ascent.scale != A(0);
  Scratch<T> room_w;
  Gradient<T> gradient;
  for_each_block(chunk.n, kBlock, [&](int64_t begin, int64_t n) {
    T* w = chunk.w + begin;
    A* q = offset(chunk.q, begin);
    copy(chunk.stash + begin, w, n * int64_t(sizeof(T)), stream);
    if (!moves && !average.on) return;
    const A* g = gradient(chunk, begin, n);
    if (moves) {
      A* perturbed = target(w, room_w);
      perturb_block(block_of<A>(ascent, widened<T>(w, n, room_w), g, q, n), ascent, perturbed);
      narrowed(perturbed, w, n, false);
    }
    if (average.on) average_block(q, g, n, average);
  });
}

template <class T>
void ascend(const AscendArgs& args, ParallelFor parallel_for) {
  using A = Acc<T>;
  const TensorTable& table = args.table;
  A& sq_norm = *static_cast<A*>(args.sq_norm);
  A direction[2];
  for (int i = 0; i < 2; ++i) direction[i] = args.direction_device ? static_cast<const A*>(args.direction_device)[i] : A(args.direction[i]);
  const auto hyper = [&](int32_t group) { return args.hyper + group * kAscendHypers; };
  const auto rho = [&](int32_t group) { return args.rho ? static_cast<const A*>(args.rho)[group] : A(hyper(group)[kRho]); };
  const auto slices = [&](const Chunk& c) {
    Slices<T> chunk{chunk_data<T>(table, c, kW), chunk_data<T>(table, c, kStash), chunk_data<T>(table, c, kG),
                    chunk_data<A>(table, c, kQ), c.begin, c.end - c.begin, std::nullopt};
    if (args.noise) chunk.signs = sign_source(args.noise, c.tensor, args.noise_stream);
    return chunk;
  };

  if (args.phase != kUpdate) {
    const bool wants_gram = args.gram && table.has(kG);
    double total[kAscendSums] = {};
    reduce_chunks(table, parallel_for, total, [=, ascent = Remembered<Ascent<A>>()](const Chunk& chunk, double* row) mutable {
      const int32_t group = table.group[chunk.tensor];
      const bool counted = rho(group) != A(0);
      const auto make = [&](int32_t g, float) { return make_ascent(hyper(g), A(0), direction); };
      if (counted || wants_gram) norm_chunk(slices(chunk), ascent.get(group, 0, make), counted, row);
    });
    sq_norm = A(total[kDirection]);
    if (wants_gram) static_cast<A*>(args.gram)[kGG] = A(total[kGradient]);
  }
  if (args.phase == kNorm) return;
  const Average<A> average{args.update_q && is_finite(sq_norm), args.q_steps && *args.q_steps == 0, A(args.ema[0]), A(args.ema[1])};
  const bool stream = streams(table, sizeof(T));
  for_each_chunk(table, parallel_for, [&, ascent = Remembered<Ascent<A>>()](int32_t, const Chunk& chunk) mutable {
    const auto make = [&](int32_t g, float) {
      return make_ascent(hyper(g), ascent_scale(rho(g), sq_norm, args.normalize, A(args.eps)), direction);
    };
    update_chunk(slices(chunk), ascent.get(table.group[chunk.tensor], 0, make), average, stream);
  });
  if (average.on && args.q_steps) *args.q_steps += 1;
}

}  // namespace

void cpu_ascend(const AscendArgs& args, ParallelFor parallel_for) {
  with_type(args.dtype, [&](auto type) { ascend<decltype(type)>(args, parallel_for); });
}

}  // namespace samk
