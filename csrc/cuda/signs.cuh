// Random signs in the place of a list of gradients: the bits of one chunk in shared memory, from where each thread takes its own.
//
// A chunk of 8192 elements takes 64 runs of the generator, one in each of 64 threads, between two barriers. A thread that ran it for
// its own vector would compute 10 rounds of two wide multiplications for 4 elements, 32 times as often, while 48 bytes of theirs
// pass; here a chunk waits for one run and moves 96 KB, and the other blocks of the multiprocessor keep the memory busy meanwhile.
#pragma once
#include "core/philox.h"
#include "payload.cuh"

namespace samk {

template <bool kNoise>
struct Signs {  // nothing takes the place of the gradients
  __device__ __forceinline__ Signs(const AscendArgs&, const Chunk&) {}
  template <class A>
  __device__ __forceinline__ void put(A&, int, int) const {}
};

template <>
struct Signs<true> {
  const uint32_t* words;
  int size;

  // For all threads of the block.
  __device__ __forceinline__ Signs(const AscendArgs& args, const Chunk& chunk) : size(int(chunk.end - chunk.begin)) {
    __shared__ PhiloxBlock blocks[kCudaChunk / kSignsPerBlock];
    words = blocks[0].word;
    __syncthreads();  // the readers of the chunk before are done
    const SignSource source = sign_source(args.noise, chunk.tensor, args.noise_stream);
    for (int i = threadIdx.x; i * kSignsPerBlock < size; i += kThreads) blocks[i] = source.block(chunk.begin / kSignsPerBlock + i);
    __syncthreads();
  }
  // g = the sign of element j of the vector that begins where `left` elements of the chunk are left: its bits are in one word.
  template <class A>
  __device__ __forceinline__ void put(A& g, int left, int j) const {
    const int i = size - left;
    g = sign_of<A>(words[i >> 5] >> (i & 31), j);
  }
};

}  // namespace samk
