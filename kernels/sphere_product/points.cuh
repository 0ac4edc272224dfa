// Any product at points, in the mirrored form: a thread has a column and takes each factor to a few points of an octant
// at a time. Values by parity, their images, what multiplies there and what returns stay in its registers.
#pragma once

#include "columns.cuh"

namespace ace::sphere {

constexpr int kAtOnce = 4;                                                // points
template <int L> constexpr int kBlocks = L <= 2 ? 4 : L <= 6 ? 3 : 2;     // of a multiprocessor, at least

using AtPoints = float[kMirrors][kAtOnce];  // by parity, or by image

// u = M x, by parity. xs: the tile's columns, of which this is the j-th.
template <int L>
__device__ __forceinline__ void to_points(AtPoints& u, const float* xs, int width, int j, int dim, const float* m) {
#pragma unroll
  for (int c = 0; c < kMirrors; ++c)
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) u[c][s] = 0.0f;
#pragma unroll
  for (int l = 0; l <= L; ++l) {
    if (l * l >= dim) break;
    const float* x = xs + width * l * l + j * (2 * l + 1);
#pragma unroll
    for (int k = 0; k <= 2 * l; ++k) {
      const float value = x[k];
      const auto w = load_pack<kAtOnce>(m + (l * l + k) * kAtOnce);
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) u[parity(l, k - l)][s] += w[s] * value;
    }
  }
}

// sum += M^T v, by parity.
template <int L>
__device__ __forceinline__ void from_points(float (&sum)[(L + 1) * (L + 1)], const AtPoints& v, int dim,
                                            const float* m) {
#pragma unroll
  for (int l = 0; l <= L; ++l) {
    if (l * l >= dim) break;
#pragma unroll
    for (int k = 0; k <= 2 * l; ++k) {
      const auto w = load_pack<kAtOnce>(m + (l * l + k) * kAtOnce);
#pragma unroll
      for (int s = 0; s < kAtOnce; ++s) sum[l * l + k] += w[s] * v[parity(l, k - l)][s];
    }
  }
}

// The product of all factors at the images of a block of points, by parity. m: the block's matrices; signs: three bits.
template <int L>
__device__ __forceinline__ void multiply(const Problem& p, AtPoints& v, const float* shared, int j, const float* m,
                                         int signs) {
#pragma unroll
  for (int c = 0; c < kMirrors; ++c) {
    const int common = signs & c;
    const float sign = (common ^ common >> 1 ^ common >> 2) & 1 ? -p.result[0].scale : p.result[0].scale;
#pragma unroll
    for (int s = 0; s < kAtOnce; ++s) v[c][s] = sign;
  }
#pragma unroll 1
  for (int n = 0; n < p.factors; ++n) {
    const Factor& f = p.factor[n];
    AtPoints u;
    to_points<L>(u, shared + f.at, p.width, j, f.dim, m + f.matrix);
    mirror(u);
#pragma unroll 1
    for (int e = 0; e < f.power; ++e)
#pragma unroll
      for (int c = 0; c < kMirrors; ++c)
#pragma unroll
        for (int s = 0; s < kAtOnce; ++s) v[c][s] *= u[c][s];
  }
  mirror(v);
}

// A block takes tiles of `width` columns; the threads of a column share its points, and add what they have in order.
template <int L>
__global__ void __launch_bounds__(kThreads, kBlocks<L>) point_product_kernel(ACE_ARGUMENT(Problem) p) {
  ACE_SHARED(unsigned char, of, kComponents);
  const Degrees degrees(of);
  float* const shared = dynamic_shared<float>();
  const int j = threadIdx.x % p.width, group = threadIdx.x / p.width, groups = kThreads / p.width;
  for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    const Tile t(p, tile);
    for (int n = 0; n < p.factors; ++n) copy_in(p, t, degrees, p.factor[n], shared + p.factor[n].at);
    copy_commit();
    float sum[(L + 1) * (L + 1)] = {};
    for (int first = 0; first < p.blocks; first += p.chunk) {
      const int count = p.blocks - first < p.chunk ? p.blocks - first : p.chunk;
      if (p.chunk < p.blocks || tile == static_cast<int>(blockIdx.x)) {
        if (first) __syncthreads();  // nobody reads the last ones
        load_matrices<kAtOnce>(p, first, count, shared);
      }
      copy_wait<0>();
      __syncthreads();
#pragma unroll 1
      for (int u = group; u < count; u += groups) {
        AtPoints v;
        const float* m = shared + u * p.step;
        multiply<L>(p, v, shared, j, m, p.signs >> 3 * ((first + u) / (p.blocks / p.parts)) & 7);
        from_points<L>(sum, v, p.result[0].dim, m + p.result[0].matrix);
      }
    }
    __syncthreads();  // nobody reads the columns
    add_columns<L>(p, p.result[0], sum, shared, j, group);
    copy_out(p, t, degrees, p.result[0], shared + p.result[0].at);
    __syncthreads();
  }
}

}  // namespace ace::sphere
