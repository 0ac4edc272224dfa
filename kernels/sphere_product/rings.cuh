// The product of two fields of degree L kept to degree L on separable points: a thread takes a column to the orders of
// a ring by its Legendre functions, those to the ring's points one after the other, and back. The values of a ring by
// order and the sums that return stay in registers, the columns in shared memory.
#pragma once

#include "columns.cuh"

namespace ace::sphere {

constexpr int kRingsFrom = 6, kRingsTo = 9;  // degrees; of higher ones registers hold too little
template <int L> constexpr int kRingBlocks = L == 6 ? 3 : 2;
template <int L> constexpr int kOrders = 2 * L + 1;
template <int L> constexpr int kLegendreRow = ((L + 1) * (L + 1) + 3) / 4 * 4;  // of a ring
template <int L> constexpr int kFourierRow = (2 * L + 4) / 4 * 4;               // of a point

template <int L> using Ring = float[kOrders<L>][2];  // by order, and even or odd under z -> -z

// Whether order m has components that are even (0) or odd (1) under z -> -z.
template <int L>
constexpr bool has(int m, int odd) {
  return (m < 0 ? -m : m) + odd <= L;
}

// Legendre functions [rings][row] and Fourier series [points of a ring][row] of every slot.
template <int L>
__device__ __forceinline__ void load_factors(const Problem& p, float* to) {
  constexpr int D = (L + 1) * (L + 1);
  const int around = p.points / p.rings;
#pragma unroll 1
  for (int q = 0; q < p.matrices; ++q) {
    const double* from = p.table + p.from[q].from;
    float* const m = to + p.from[q].at;
#pragma unroll 4
    for (int e = threadIdx.x; e < p.rings * D; e += blockDim.x)
      m[e / D * kLegendreRow<L> + e % D] = static_cast<float>(from[e]);
    for (int e = threadIdx.x; e < around * kOrders<L>; e += blockDim.x)
      m[p.rings * kLegendreRow<L> + e / kOrders<L> * kFourierRow<L> + e % kOrders<L>] =
          static_cast<float>(from[p.rings * D + e]);
  }
}

template <int L, bool planes>
__global__ void __launch_bounds__(kThreads, kRingBlocks<L>) ring_product_kernel(ACE_ARGUMENT(Problem) p) {
  constexpr int D = (L + 1) * (L + 1), F = 2;
  ACE_SHARED(unsigned char, of, kComponents);
  const Degrees degrees(of);
  float* const shared = dynamic_shared<float>();
  const int j = threadIdx.x % p.width, group = threadIdx.x / p.width;  // threads of a column share its rings
  const int around = p.points / p.rings;
  const auto fetch = [&](int tile) {
    for (int n = 0; n < F && tile < p.tiles; ++n)
      copy_in(p, Tile(p, tile), degrees, p.factor[n], shared + p.factor[n].at);
    copy_commit();
  };
  fetch(blockIdx.x);
  load_factors<L>(p, shared);
#pragma unroll 1
  for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    copy_wait<0>();
    __syncthreads();
    float sum[D] = {};
#pragma unroll 1
    for (int t = group; t < p.rings; t += blockDim.x / p.width) {
      Ring<L> h[F] = {}, back = {};
#pragma unroll
      for (int n = 0; n < F; ++n) {
        const float* x = shared + p.factor[n].at;
        const int into = opaque(j);
        each_component<L>(shared + p.factor[n].matrix + t * kLegendreRow<L>, [&](int i, int l, int k, float w) {
          const int at = planes ? p.width * i + into : p.width * l * l + into * (2 * l + 1) + k;
          h[n][k - l + L][k & 1] += w * x[at];
        });
      }
#pragma unroll 1
      for (int q = 0; q < around; ++q) {
        const int at = p.rings * kLegendreRow<L> + q * kFourierRow<L>;
        float u[F][kMirrors][1] = {}, v[kMirrors][1];
#pragma unroll
        for (int n = 0; n < F; ++n) {
          Pack<float, 4> w;
#pragma unroll
          for (int m = -L; m <= L; ++m) {
            if ((m + L) % 4 == 0) w = load_pack<4>(shared + p.factor[n].matrix + at + m + L);
#pragma unroll
            for (int odd = 0; odd < 2; ++odd)
              if (has<L>(m, odd)) u[n][(parity(0, m) & 3) | odd << 2][0] += w[(m + L) % 4] * h[n][m + L][odd];
          }
          mirror(u[n]);
        }
#pragma unroll
        for (int c = 0; c < kMirrors; ++c) v[c][0] = u[0][c][0] * u[1][c][0];
        mirror(v);
        Pack<float, 4> w;
#pragma unroll
        for (int m = -L; m <= L; ++m) {
          if ((m + L) % 4 == 0) w = load_pack<4>(shared + p.result[0].matrix + at + m + L);
#pragma unroll
          for (int odd = 0; odd < 2; ++odd)
            if (has<L>(m, odd)) back[m + L][odd] += w[(m + L) % 4] * v[(parity(0, m) & 3) | odd << 2][0];
        }
      }
      each_component<L>(shared + p.result[0].matrix + t * kLegendreRow<L>, [&](int i, int l, int k, float w) {
        sum[i] += w * back[k - l + L][k & 1];
      });
    }
    __syncthreads();  // nobody reads the columns
    add_columns<L>(p, p.result[0], sum, shared, opaque(j), group);
    copy_out(p, Tile(p, tile), degrees, p.result[0], shared + p.result[0].at);
    __syncthreads();
    fetch(tile + gridDim.x);
  }
}

}  // namespace ace::sphere
