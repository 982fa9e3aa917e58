// embedding_grad_norms: out_b = sum_v |sum_{t: ids_bt = v} g_bt|^2, v other than the padding.
//
// The positions of a sample are sorted by id, then each run of equal ids is added up, a block of features at a time in scratch that
// stays in L1, and squared. Reads g once, in order of ids: 4 bytes per element in fp32, and 16 per position for the sort. Parallel over
// samples, and over slices of features where samples are few; slices follow from the sizes alone and are added in their order, ties
// of the sort are broken by position: equal bits for any number of threads. Ids are compared, never used as addresses.
#include <algorithm>

#include "lanes.h"
#include "layers.h"
#include "stage.h"

namespace samk {
namespace {

constexpr int64_t kTasks = 32, kExact = 1 << 16;  // squares that are added in fp32 before they are added up in fp64

struct Token {
  int64_t id, position;
  bool operator<(const Token& other) const { return id != other.id ? id < other.id : position < other.position; }
};

SAMK_CLONES void add_block(const float* x, float* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}
SAMK_CLONES void add_block(const double* x, double* __restrict sum, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

// The tokens of [first, last) share an id: squares of the features [from, to) of their sum.
template <class T>
void add_run(const T* g, int64_t features, const Token* first, const Token* last, int64_t from, int64_t to, Lanes<Acc<T>, 1>& squares) {
  Scratch<T> room;
  alignas(64) Acc<T> sum[kBlock];
  for_each_block(to - from, kBlock, [&](int64_t begin, int64_t n) {
    const T* column = g + from + begin;
    const Acc<T>* x = widened(column + first->position * features, n, room);
    if (last - first > 1) {
      std::copy(x, x + n, sum);
      for (const Token* token = first + 1; token < last; ++token) add_block(widened(column + token->position * features, n, room), sum, n);
      x = sum;
    }
    sum_squares(x, n, squares);
  });
}

template <class T>
double square_of(const T* g, int64_t features, const Token* tokens, int64_t length, int64_t padding, int64_t from, int64_t to) {
  double square = 0;
  int64_t pending = 0;
  Lanes<Acc<T>, 1> squares;
  for (int64_t begin = 0, end; begin < length; begin = end) {
    for (end = begin + 1; end < length && tokens[end].id == tokens[begin].id;) ++end;
    if (padding >= 0 && tokens[begin].id == padding) continue;
    add_run(g, features, tokens + begin, tokens + end, from, to, squares);
    if ((pending += to - from) >= kExact) {
      square += squares.total(0);
      squares = {};
      pending = 0;
    }
  }
  return square + squares.total(0);
}

template <class T>
void embedding_grad_norms(const EmbeddingArgs& args, ParallelFor parallel_for) {
  const int64_t most = (kTasks + args.samples - 1) / args.samples, width = std::max((args.features + most - 1) / most, kBlock);
  const int64_t slices = (args.features + width - 1) / width;
  std::vector<Token> tokens(size_t(args.samples * args.length));
  std::vector<double> partial(size_t(args.samples * slices));
  struct Context {
    const EmbeddingArgs& args;
    Token* tokens;
    double* partial;
    int64_t width, slices;
  } context{args, tokens.data(), partial.data(), width, slices};
  const auto sort = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    for (int64_t b = begin; b < end; ++b) {
      Token* own = c.tokens + b * c.args.length;
      for (int64_t t = 0; t < c.args.length; ++t) own[t] = {c.args.ids[b * c.args.length + t], t};
      std::sort(own, own + c.args.length);
    }
  };
  const auto walk = [](void* pointer, int64_t begin, int64_t end) {
    const Context& c = *static_cast<Context*>(pointer);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t b = task / c.slices, from = task % c.slices * c.width, to = std::min(from + c.width, c.args.features);
      const T* g = static_cast<const T*>(c.args.g) + b * c.args.length * c.args.features;
      c.partial[task] = square_of(g, c.args.features, c.tokens + b * c.args.length, c.args.length, c.args.padding, from, to);
    }
  };
  parallel_for(args.samples, 1 + 4096 / args.length, sort, &context);
  parallel_for(args.samples * slices, 1 + 32768 / (args.length * width), walk, &context);
  for (int64_t b = 0; b < args.samples; ++b) {
    double square = 0;
    for (int64_t slice = 0; slice < slices; ++slice) square += partial[size_t(b * slices + slice)];
    static_cast<Acc<T>*>(args.norms)[b] = Acc<T>(square);
  }
}

}  // namespace

void cpu_embedding_grad_norms(const EmbeddingArgs& args, ParallelFor parallel_for) {
  if (args.samples * args.length * args.features == 0) return;  // the norms are zero already
  with_type(args.dtype, [&](auto type) { embedding_grad_norms<decltype(type)>(args, parallel_for); });
}

}  // namespace samk
