// The backward kernel: a block walks a stretch of edges sorted by target, with the gradient of the node's row of out in
// shared memory; a warp takes an edge with a unit of channels, and has all of its paths' gradients of x1 in registers.
// Those rows of x1's gradient, one for an edge, go to a buffer that sum_sources_kernel adds at the sources.
#pragma once

#include "stage.cuh"

namespace ace::conv {

// Where gradients go; null for those that nobody asked for.
template <class T>
struct Gradients {
  T* x1;      // [positions from `begin` on, dim1], or atomic: [N_src, dim1], which begins as zeros
  T* x2;      // [E, dim2]
  T* weight;  // [E, n], or shared: [blocks, n]
  int64_t begin;
  bool add, atomic;  // add: earlier launches have written rows of x1 and x2
};

// A unit of channels of one edge, at one node.
template <class T>
struct Backward {
  const Plan& plan;
  const Operands<T>& in;
  const Gradients<T>& to;
  const PathInfo<T>* info;
  const Facts<T>& facts;
  const T* g;         // [dim3], in shared memory
  T *g_x1, *g_x2;     // the edge's row [dim1], the edge's and unit's [dim2], in shared memory
  T* g_weight;        // the edge's row in memory, or the block's sums in shared memory
  Row<T> row;
  int lane;

  __device__ bool known(int entry) const { return facts.all || facts.known[entry]; }

  template <int L1, int L2, int L3, int G>
  __device__ __forceinline__ void run(Adjoint<T, L1, G>& a, const Unit& unit, int n, T (&g_y)[8]) const {
    constexpr int d2 = 2 * L2 + 1, d3 = 2 * L3 + 1;
    if constexpr (triangle(L1, L2, L3)) {
      const Entry& entry = plan.entry[n];
      const bool inside = lane < unit.count;
      const int channel = inside ? lane : 0;
      const Strides s3 = strides(in.ir_mul, unit.mul, d3);
      T y[d2], gk[G][d3];
#pragma unroll
      for (int j = 0; j < d2; ++j) y[j] = row.x2[entry.o2 + j];
#pragma unroll
      for (int s = 0; s < G; ++s) {
        const T w = inside ? row.weight[entry.w[s] + channel] : T(0);
        a.w[s] = w * facts.scale[2 * n + s];
#pragma unroll
        for (int k = 0; k < d3; ++k) gk[s][k] = g[entry.y[s] + channel * s3.u + k * s3.i];
      }
      adjoint<T, L1, L2, L3, G>(a, y, gk, to.x1 || to.weight, to.x2 != nullptr, g_y);
      if (!to.weight || !inside) return;
#pragma unroll
      for (int s = 0; s < G; ++s) {
        T* const at = g_weight + entry.w[s] + channel;
        const T value = a.g_w[s] * facts.scale[2 * n + s];
        *at = in.shared ? *at + value : value;
      }
    }
  }

  template <int L1, int L2, int G>
  __device__ __forceinline__ void run_degree(Adjoint<T, L1, G>& a, const Unit& unit, int n, T (&g_y)[8]) const {
    switch (plan.entry[n].d3 / 2) {
      case 0: return run<L1, L2, 0, G>(a, unit, n, g_y);
      case 1: return run<L1, L2, 1, G>(a, unit, n, g_y);
      case 2: return run<L1, L2, 2, G>(a, unit, n, g_y);
      case 3: return run<L1, L2, 3, G>(a, unit, n, g_y);
    }
  }

  // All paths of the unit that have code of their own.
  template <int L1, int G>
  __device__ __forceinline__ void run_unit(const Unit& unit) const {
    constexpr int d1 = 2 * L1 + 1;
    const bool inside = lane < unit.count;
    const int channel = inside ? lane : 0;
    const Strides s1 = strides(in.ir_mul, unit.mul, d1);
    Adjoint<T, L1, G> a{};
    T g_y[8] = {};
#pragma unroll
    for (int s = 0; s < G; ++s)
#pragma unroll
      for (int i = 0; i < d1; ++i) {
        a.x[s][i] = row.x1[unit.x[s] + channel * s1.u + i * s1.i];
        a.g_x[s][i] = T(0);
      }
#pragma unroll 1
    for (int n = unit.first, end = n + unit.entries; n < end; ++n) {
      const Entry& entry = plan.entry[n];
      if (!known(n)) continue;
      switch (entry.d2 / 2) {
        case 0: run_degree<L1, 0, G>(a, unit, n, g_y); break;
        case 1: run_degree<L1, 1, G>(a, unit, n, g_y); break;
        case 2: run_degree<L1, 2, G>(a, unit, n, g_y); break;
        case 3: run_degree<L1, 3, G>(a, unit, n, g_y); break;
      }
      const bool same = n + 1 < end && plan.entry[n + 1].o2 == entry.o2 && known(n + 1);
      if (to.x2 && !same) {  // the last path with this slice of in2
        if (entry.d2 == 1) add_over_lanes<T, 1>(g_y, g_x2 + entry.o2, lane);
        else if (entry.d2 == 3) add_over_lanes<T, 3>(g_y, g_x2 + entry.o2, lane);
        else if (entry.d2 == 5) add_over_lanes<T, 5>(g_y, g_x2 + entry.o2, lane);
        else add_over_lanes<T, 7>(g_y, g_x2 + entry.o2, lane);
#pragma unroll
        for (int j = 0; j < 8; ++j) g_y[j] = T(0);
        __syncwarp();
      }
    }
    if (!to.x1 || !inside) return;
#pragma unroll
    for (int s = 0; s < G; ++s)
#pragma unroll
      for (int i = 0; i < d1; ++i) g_x1[unit.x[s] + lane * s1.u + i * s1.i] = a.g_x[s][i];
  }

  // The unit's other paths, from the table. g_x1: written already where `begun`, else zeroed here.
  __device__ __forceinline__ void run_table(const Unit& unit, bool begun) const {
    const bool inside = lane < unit.count;
    for (int s = 0; s < unit.streams; ++s) {
      const Strides s1 = strides(in.ir_mul, unit.mul, unit.d1);
      for (int i = 0; to.x1 && !begun && inside && i < unit.d1; ++i) g_x1[unit.x[s] + lane * s1.u + i * s1.i] = T(0);
      for (int n = unit.first; n < unit.first + unit.entries; ++n) {
        const Entry& entry = plan.entry[n];
        if (known(n)) continue;
        const OnePath<T> path(unit, entry, s, row, in.ir_mul);
        const bool need_weight = to.weight && entry.weighted && inside;
        T* const at = g_weight + entry.w[s] + lane * path.V;
        for (int v = 0; need_weight && !in.shared && v < path.V; ++v) at[v] = T(0);
        path.over(in.table, info[entry.path[s]], [&](int v, int i, int j, int k, T c) {
          const T x = inside ? path.x[path.in1(i)] : T(0), gk = inside ? g[entry.y[s] + path.out(k)] : T(0);
          const T y = path.y[path.in2(v, j)], w = inside ? path.weight(v) : T(0);
          if (to.x1 && inside) g_x1[unit.x[s] + path.in1(i)] += c * w * y * gk;
          if (need_weight) at[v] += c * x * y * gk;
          if (!to.x2) return;
          const T sum = warp_sum(c * w * x * gk);
          if (lane == 0) g_x2[entry.o2 + path.in2(v, j)] += sum;
        });
        __syncwarp();
      }
    }
  }

  template <int G>
  __device__ __forceinline__ void run_known(const Unit& unit) const {
    switch (unit.d1 / 2) {
      case 0: return run_unit<0, G>(unit);
      case 1: return run_unit<1, G>(unit);
      case 2: return run_unit<2, G>(unit);
      case 3: return run_unit<3, G>(unit);
    }
  }

  template <int G>
  __device__ __forceinline__ void run_all(const Unit& unit) const {
    bool any = facts.all, all = true;
    for (int n = unit.first; !facts.all && n < unit.first + unit.entries; ++n) {
      any = any || known(n);
      all = all && known(n);
    }
    if (any && G == 2 && unit.streams == 2) run_known<G>(unit);
    else if (any) run_known<1>(unit);
    __syncwarp();
    if (!all) run_table(unit, any);
  }
};

// A block's shared memory behind the rows that arrive: rows of gradients.
template <class T>
struct Outgoing {
  T *g, *x1, *x2, *weight;  // [dim3], [chunk][dim1], [chunk][units][dim2], shared: [n]

  __device__ Outgoing(T* space, const Operands<T>& in, const Sizes& sizes, int units)
      : g(space), x1(g + (in.dim3 + 3) / 4 * 4), x2(x1 + sizes.chunk * in.dim1),
        weight(x2 + sizes.chunk * units * in.dim2) {}
  __device__ T* end(const Operands<T>& in) const { return weight + (in.shared ? in.n : 0); }
};

template <class T>
__device__ __forceinline__ void clear(T* p, int count) {
  for (int c = threadIdx.x; c < count; c += blockDim.x) p[c] = T(0);
}

// The rows of gradients of edges first .. last - 1 to memory, from slot 0 on in shared memory.
template <class T>
__device__ __forceinline__ void write_rows(const Outgoing<T>& rows, const Operands<T>& in, const Gradients<T>& to,
                                           const Stretch& stretch, int first, int last, int units) {
  const int count = last - first;
  over_rows(to.x1 ? count : 0, in.dim1, [&](int r, int c) {
    const T value = rows.x1[r * in.dim1 + c];
    if (to.atomic) {
      const int64_t source = stretch.source[first + r];
      if (source >= 0) atomicAdd(to.x1 + source * in.dim1 + c, value);
    } else {
      T* const at = to.x1 + (stretch.begin + first + r - to.begin) * in.dim1 + c;
      *at = to.add ? *at + value : value;
    }
  });
  over_rows(to.x2 ? count : 0, in.dim2, [&](int r, int c) {
    const int64_t e = stretch.edge[first + r];
    T sum = T(0);
    for (int u = 0; u < units; ++u) sum += rows.x2[(r * units + u) * in.dim2 + c];
    if (e < 0) return;
    T* const at = to.x2 + e * in.dim2 + c;
    *at = to.add ? *at + sum : sum;
  });
}

template <class T, int G>
__global__ void __launch_bounds__(kThreads<T>, 1) conv_bwd_kernel(ACE_ARGUMENT(Plan) plan, Operands<T> in, Graph graph,
    const PathInfo<T>* info, Gradients<T> to, int64_t stop, int most, Sizes sizes) {
  const Outgoing<T> rows(dynamic_shared<T>(), in, sizes, plan.units);
  const Stage<T> stage(rows.end(in) + (4 - (rows.end(in) - rows.g) % 4) % 4, in, sizes);
  int* const space = reinterpret_cast<int*>(stage.weight + (in.shared ? 1 : 2 * sizes.chunk) * sizes.ld_weight);
  const Facts<T> facts(space + 4 * most, plan, info);
  const Stretch stretch(graph, space, to.begin + int64_t(blockIdx.x) * most, most, stop);
  const int warp = threadIdx.x / 32;
  clear(rows.x1, sizes.chunk * in.dim1);
  if (in.shared) clear(rows.weight, in.n);
  stage.fetch_shared();
  __syncthreads();
  stage.fetch(stretch, 0, 0);
  int at = -2;  // the node whose gradient is there; that of no node (-1) is zero
  for (int chunk = 0, half = 0; chunk < stretch.count; chunk += sizes.chunk, half ^= 1) {
    stage.fetch(stretch, chunk + sizes.chunk, half ^ 1);
    clear(rows.x2, to.x2 ? sizes.chunk * plan.units * in.dim2 : 0);
    copy_wait<1>();
    __syncthreads();
    const int end = chunk + sizes.chunk < stretch.count ? chunk + sizes.chunk : stretch.count;
    for (int first = chunk, last; first < end; first = last) {
      const int node = stretch.target[first];
      for (last = first + 1; last < end && stretch.target[last] == node;) ++last;
      if (node != at) {
        __syncthreads();
        for (int c = threadIdx.x; c < in.dim3; c += blockDim.x)
          rows.g[c] = node < 0 ? T(0) : in.g[int64_t(node) * in.dim3 + c];
        at = node;
        __syncthreads();
      }
      // shared weights: a unit's sums are one warp's; else an edge and a unit, the largest units first, back and forth
      const int edges = last - first, tasks = in.shared ? plan.units : plan.units * edges;
      constexpr int warps = kThreads<T> / 32;
      for (int round = 0; round * warps < tasks; ++round) {
        const int task = round * warps + (round % 2 ? warps - 1 - warp : warp);
        if (task >= tasks) continue;
        const int unit = in.shared ? task : task / edges;
        for (int n = in.shared ? 0 : task % edges; n < edges; n += in.shared ? 1 : edges) {
          const int p = first + n, at_row = p - chunk;
          const int64_t edge = stretch.edge[p];
          if (edge < 0) continue;
          const Backward<T> backward{plan, in, to, info, facts, rows.g, rows.x1 + at_row * in.dim1,
                                     rows.x2 + (at_row * plan.units + unit) * in.dim2,
                                     in.shared ? rows.weight : to.weight + edge * in.n,
                                     stage.row(half * sizes.chunk + at_row), lane_id()};
          backward.template run_all<G>(plan.unit[unit]);
        }
      }
    }
    __syncthreads();
    write_rows(rows, in, to, stretch, chunk, end, plan.units);
    __syncthreads();
  }
  if (!in.shared || !to.weight) return;
  for (int c = threadIdx.x; c < in.n; c += blockDim.x) {
    T* const p = to.weight + int64_t(blockIdx.x) * in.n + c;
    *p = to.add ? *p + rows.weight[c] : rows.weight[c];
  }
}

}  // namespace ace::conv
