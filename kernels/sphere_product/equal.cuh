// The product of two fields of degree L kept to degree L, or both of its gradients: a thread has a column of each
// tensor in registers, and takes them to one point of the octant after the other. A warp reads one address of a matrix.
#pragma once

#include "columns.cuh"

namespace ace::sphere {

// Two tensors and a result, or g and two inputs with two results, up to these degrees: what registers hold.
template <int F> constexpr int kEqualDegrees = F == 2 ? 7 : 5;
template <int L, int F> constexpr int kEqualRegisters = (2 * F - 1) * (L + 1) * (L + 1) + 8 * F + 36;
template <int L, int F>
constexpr int kEqualBlocks = 65536 / kThreads / kEqualRegisters<L, F> < 2   ? 2
                             : 65536 / kThreads / kEqualRegisters<L, F> > 8 ? 8
                                                                            : 65536 / kThreads / kEqualRegisters<L, F>;
template <int L> constexpr int kRow = ((L + 1) * (L + 1) + 3) / 4 * 4;  // of a matrix
// Whether the next columns come while these are multiplied: results then have a place of their own.
template <int L> constexpr bool kAhead = L <= 6;

template <int L, int F>
__global__ void __launch_bounds__(kThreads, kEqualBlocks<L, F>) equal_product_kernel(ACE_ARGUMENT(Problem) p) {
  constexpr int D = (L + 1) * (L + 1), R = F - 1;
  ACE_SHARED(unsigned char, of, kComponents);
  const Degrees degrees(of);
  float* const shared = dynamic_shared<float>();
  const int j = threadIdx.x % p.width, group = threadIdx.x / p.width;  // threads of a column share its points
  const auto fetch = [&](int tile) {
    if (tile < p.tiles)
      for (int n = 0; n < F; ++n) copy_in(p, Tile(p, tile), degrees, p.factor[n], shared + p.factor[n].at);
    copy_commit();
  };
  fetch(blockIdx.x);
  load_matrices<1>(p, 0, p.points, shared);
#pragma unroll 1
  for (int tile = blockIdx.x; tile < p.tiles; tile += gridDim.x) {
    copy_wait<0>();
    __syncthreads();
    float x[F][D], sum[R][D] = {};
    const int into = opaque(j);
#pragma unroll
    for (int n = 0; n < F; ++n)
#pragma unroll
      for (int l = 0; l <= L; ++l) {
        const float* from = shared + p.factor[n].at + p.width * l * l + (p.planes ? into : into * (2 * l + 1));
        const int step = p.planes ? p.width : 1;
#pragma unroll
        for (int k = 0; k <= 2 * l; ++k, from += step) x[n][l * l + k] = *from;
      }
    __syncthreads();
    if constexpr (kAhead<L>) fetch(tile + gridDim.x);
#pragma unroll 1
    for (int s = group; s < p.points; s += blockDim.x / p.width) {
      float u[F][kMirrors][1] = {}, v[R][kMirrors][1];
#pragma unroll
      for (int n = 0; n < F; ++n) {
        each_component<L>(shared + s * p.step + p.factor[n].matrix, [&](int i, int l, int k, float w) {
          u[n][parity(l, k - l)][0] += w * x[n][i];
        });
        mirror(u[n]);
      }
#pragma unroll
      for (int r = 0; r < R; ++r) {
#pragma unroll
        for (int c = 0; c < kMirrors; ++c) v[r][c][0] = u[0][c][0] * u[R - r][c][0];
        mirror(v[r]);
        each_component<L>(shared + s * p.step + p.result[r].matrix, [&](int i, int l, int k, float w) {
          sum[r][i] += w * v[r][parity(l, k - l)][0];
        });
      }
    }
#pragma unroll
    for (int r = 0; r < R; ++r) add_columns<L>(p, p.result[r], sum[r], shared, opaque(j), group);
    for (int r = 0; r < R; ++r) copy_out(p, Tile(p, tile), degrees, p.result[r], shared + p.result[r].at);
    if constexpr (!kAhead<L>) {
      __syncthreads();
      fetch(tile + gridDim.x);
    }
  }
}

}  // namespace ace::sphere
