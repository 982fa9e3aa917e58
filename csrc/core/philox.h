// Philox4x32-10, the counter-based generator of Salmon et al. (SC 2011), and the random signs that are drawn from it.
//
// A block of four words is a function of key and counter: nothing is stored, any element can be drawn alone, and every backend draws
// the same bits. The readable version is in sam_kernels/ops/philox.py.
#pragma once
#include <cstdint>

#include "tensor_table.h"

namespace samk {

struct PhiloxBlock {
  uint32_t word[4];
};

SAMK_HD PhiloxBlock philox(uint64_t key, PhiloxBlock counter) {
  uint32_t k0 = uint32_t(key), k1 = uint32_t(key >> 32), (&c)[4] = counter.word;
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(0xD2511F53u) * c[0], b = uint64_t(0xCD9E8D57u) * c[2];
    counter = {{uint32_t(b >> 32) ^ c[1] ^ k0, uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k1, uint32_t(a)}};
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return counter;
}

constexpr int kSignsPerBlock = 128;

// The signs of one tensor of a call: bit j % 128 of block j / 128 belongs to element j, in the order of memory.
struct SignSource {
  uint64_t seed;
  uint32_t tensor, stream, offset;

  SAMK_HD PhiloxBlock block(int64_t index) const { return philox(seed, {{uint32_t(index), tensor, stream, offset}}); }
};

// `state`: (seed, offset)
SAMK_HD SignSource sign_source(const int64_t* state, int32_t tensor, uint32_t stream) {
  return {uint64_t(state[0]), uint32_t(tensor), stream, uint32_t(state[1])};
}

// Bit i % 32 of the word: +1 where it is set, else -1.
template <class A>
SAMK_HD A sign_of(uint32_t word, int i) {
  return (word >> (i & 31) & 1u) != 0 ? A(1) : A(-1);
}

}  // namespace samk
