// What the forward and the backward kernel share: a block's stretch of edges, sorted by target, and their rows on the
// way to shared memory.
#pragma once

#include "degrees.cuh"

namespace ace::conv {

struct Graph {
  const int64_t *order, *source, *target;  // order: edges sorted by target
  int64_t edges, sources, targets;
};

template <class T>
struct Operands {
  const T *x1, *x2, *weight, *g;
  int dim1, dim2, dim3, n;  // columns of x1, x2, g or out, and weight
  bool ir_mul, shared;      // shared: one row of weights
  Table table;
};

// Values of a row in shared memory, and how many are copied at once; rows in flight.
struct Sizes {
  int ld_x1, ld_x2, ld_weight, v_x1, v_x2, v_weight, chunk;
};

// The edges at positions begin .. begin + count - 1. An edge with an end outside its range has source -1, and adds
// nothing; one whose target is outside has target -1 and belongs to no node.
struct Stretch {
  int *edge, *source, *target;  // in shared memory
  int64_t begin;
  int count;

  // Reads the indices, by all threads; needs a barrier.
  __device__ Stretch(const Graph& graph, int* space, int64_t begin, int most, int64_t end)
      : edge(space), source(space + most), target(space + 2 * most), begin(begin),
        count(static_cast<int>(end - begin < most ? end - begin : most)) {
    for (int p = threadIdx.x; p < count; p += blockDim.x) {
      const int64_t e = graph.order[begin + p];
      const bool there = e >= 0 && e < graph.edges;
      const int64_t s = there ? graph.source[e] : -1, t = there ? graph.target[e] : -1;
      const bool at_target = t >= 0 && t < graph.targets;
      edge[p] = there ? static_cast<int>(e) : -1;
      target[p] = at_target ? static_cast<int>(t) : -1;
      source[p] = at_target && s >= 0 && s < graph.sources ? static_cast<int>(s) : -1;
    }
  }

  // The node at which the edges before this stretch end too, or -1.
  __device__ static int64_t continued(const Graph& graph, int64_t begin) {
    if (begin <= 0 || begin >= graph.edges) return -1;
    const int64_t e = graph.order[begin], before = graph.order[begin - 1];
    if (e < 0 || e >= graph.edges || before < 0 || before >= graph.edges) return -1;
    const int64_t t = graph.target[e];
    return t == graph.target[before] && t >= 0 && t < graph.targets ? t : -1;
  }
};

// f(row, column) for all of a matrix, shared out over the threads of a block; divides once.
template <class F>
__device__ __forceinline__ void over_rows(int rows, int columns, F&& f) {
  if (columns == 0) return;
  int r = static_cast<int>(threadIdx.x) / columns, c = static_cast<int>(threadIdx.x) % columns;
#pragma unroll 2
  while (r < rows) {
    f(r, c);
    for (c += blockDim.x; c >= columns; c -= columns) ++r;
  }
}

template <int bytes, class T>
__device__ __forceinline__ void copy_rows(T* to, int ld, const T* from, int width, const int* row, const int* valid,
                                          int rows) {
  constexpr int v = bytes / static_cast<int>(sizeof(T));
  over_rows(rows, width / v, [&](int r, int c) {
    const bool there = row[r] >= 0 && valid[r] >= 0;
    copy_async<bytes>(to + r * ld + c * v, from + (there ? int64_t(row[r]) * width + c * v : 0), there);
  });
}

// Starts copying rows row[0 .. rows - 1] of a matrix; zeros where row or valid are negative.
template <class T>
__device__ __forceinline__ void stage_rows(T* to, int ld, int v, const T* from, int width, const int* row,
                                           const int* valid, int rows) {
  const int bytes = v * static_cast<int>(sizeof(T));
  if (bytes == 16) return copy_rows<16>(to, ld, from, width, row, valid, rows);
  if (bytes == 8) return copy_rows<8>(to, ld, from, width, row, valid, rows);
  if constexpr (sizeof(T) == 4) copy_rows<4>(to, ld, from, width, row, valid, rows);
}

// What is known of a plan's coefficients, in shared memory.
template <class T>
struct Facts {
  T* scale;    // [entry, stream]
  int* known;  // [entry]: those of both streams are the compiler's times `scale`
  bool all;

  static constexpr int kBytes = kEntries * (2 * sizeof(T) + sizeof(int));

  // By all threads; needs a barrier.
  __device__ Facts(void* space, const Plan& plan, const PathInfo<T>* info)
      : scale(static_cast<T*>(space)), known(reinterpret_cast<int*>(scale + 2 * kEntries)) {
    bool mine = true;
    for (int n = lane_id(); n < plan.entries; n += 32) {
      const PathInfo<T> one = info[plan.entry[n].path[0]], two = info[plan.entry[n].path[1]];
      mine = mine && one.known && two.known;
      if (threadIdx.x >= 32) continue;
      scale[2 * n] = one.scale;
      scale[2 * n + 1] = two.scale;
      known[n] = one.known && two.known;
    }
    all = __ballot_sync(kWarp, mine) == kWarp;
  }
};

// Rows of x1, x2 and weights of `chunk` edges, twice: one half is worked on while the other arrives.
template <class T>
struct Stage {
  T *x1, *x2, *weight;  // of both halves, the second sizes.chunk rows on
  const Sizes& sizes;
  const Operands<T>& in;

  __device__ Stage(T* space, const Operands<T>& in, const Sizes& sizes)
      : x1(space), x2(x1 + 2 * sizes.chunk * sizes.ld_x1), weight(x2 + 2 * sizes.chunk * sizes.ld_x2), sizes(sizes),
        in(in) {}

  // Starts the copies of the edges at positions first .. first + chunk - 1 of the stretch to one of the halves.
  __device__ void fetch(const Stretch& stretch, int first, int half) const {
    const int rest = stretch.count - first, rows = sizes.chunk < rest ? sizes.chunk : rest;
    half *= sizes.chunk;
    const int *edge = stretch.edge + first, *source = stretch.source + first;
    if (rows > 0) {
      stage_rows(x1 + half * sizes.ld_x1, sizes.ld_x1, sizes.v_x1, in.x1, in.dim1, source, source, rows);
      stage_rows(x2 + half * sizes.ld_x2, sizes.ld_x2, sizes.v_x2, in.x2, in.dim2, edge, source, rows);
      if (!in.shared)
        stage_rows(weight + half * sizes.ld_weight, sizes.ld_weight, sizes.v_weight, in.weight, in.n, edge, source,
                   rows);
    }
    copy_commit();
  }
  // The one row of shared weights; it arrives with the first chunk.
  __device__ void fetch_shared() const {
    if (!in.shared) return;
    for (int c = threadIdx.x; c < in.n; c += blockDim.x) weight[c] = in.weight[c];
  }

  // The rows of the edge at a slot, 0 .. 2 chunk - 1.
  __device__ Row<T> row(int slot) const {
    return {x1 + slot * sizes.ld_x1, x2 + slot * sizes.ld_x2, in.shared ? weight : weight + slot * sizes.ld_weight};
  }
  __device__ void next(Row<T>& row) const {
    row.x1 += sizes.ld_x1;
    row.x2 += sizes.ld_x2;
    if (!in.shared) row.weight += sizes.ld_weight;
  }
};

}  // namespace ace::conv
