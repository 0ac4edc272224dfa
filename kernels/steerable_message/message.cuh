// The kernels of steerable_message: a block takes the edges of consecutive target nodes, 16 at a time, from the gather of
// their ends to the sum at the node, or back.
#pragma once

#include "tile.cuh"

namespace ace::message {

constexpr int kPaths1 = 40, kPaths2 = 20, kSlices = 8;  // more do not fit into a launch's arguments

struct Slots { int count, offset[kSlices], length[kSlices]; };

// e3nn's gate: in = scalars, gates, gated slices (mul, d); out = scalars, gated slices. scalars < 0: there is none.
struct Gate {
  int scalars, gates, count, mul[kSlices], d[kSlices];
  double scalar_gain, gate_gain;
};

// Both products, in constant memory.
struct Tables {
  Path path1[kPaths1], path2[kPaths2];
  unsigned char by_in1[kPaths1], by_in2[kPaths2];
  int count1, count2, in1, out1, in2, out2;
  Slots slots1, slots2;
  Gate gate1, gate2;
  __device__ Table one() const { return {path1, by_in1, count1, in1, out1}; }
  __device__ Table two() const { return {path2, by_in2, count2, in2, out2}; }
};

// Offsets in shared memory in values of T, strides of its rows; see cuda.cu.
struct Layout { int x, y1, m1, y2, g, attr, dense1, dense2, m, t, carry, columns, ld_x, ld_y, ld_m, ld_attr, t_size, most; };

template <class T>
struct Problem {
  int64_t N, E;
  int D, X, A, width, window;  // width: of a message; window: edges of a block
  const T *h, *extra, *attr, *weight1, *bias1, *weight2, *bias2;
  const int64_t *source, *target, *order, *ptr;
  Coefficients table1, table2;
  Precision precision;
  Layout at;
};

// Where a backward pass writes; null where nobody asks.
template <class T>
struct Gradients {
  const T* g;         // [N, width]
  T *h, *sent, *extra;  // [N, D], [E, D]: the sources' part, edge by edge; [E, X]
  T* part;              // [block, n]: weight1, weight2, bias1, bias2
  int64_t n, at2, at_bias1, at_bias2;
  int biases1, biases2;
};

// ---- nodes and edges -----------------------------------------------------------------------------------------------

__device__ __forceinline__ int64_t clamp_to(int64_t x, int64_t low, int64_t high) {
  return x < low ? low : x > high ? high : x;
}

// The nodes of a block, those whose first edge (or place, where they have none) lies in its window, and their edges.
struct Range {
  int64_t node, nodes_end, edge, edges_end;

  template <class T>
  __device__ explicit Range(const Problem<T>& in) {
    const int64_t low = int64_t(blockIdx.x) * in.window, high = low + in.window;
    const auto node_after = [&](int64_t p) {  // that of the sorted edge before p, plus one
      const int64_t e = in.order[p - 1];
      return e >= 0 && e < in.E ? clamp_to(in.target[e] + 1, 0, in.N) : 0;
    };
    node = low == 0 ? 0 : node_after(low);
    nodes_end = high >= in.E ? in.N : node_after(high);
    if (nodes_end < node) nodes_end = node;
    edge = clamp_to(in.ptr[node], 0, in.E);
    edges_end = clamp_to(in.ptr[nodes_end], edge, in.E);
  }
};

// Sixteen edges: their ids (-1: none), and the nodes they come from and go to.
struct Edges {
  int64_t *id, *source, *target;

  template <class T>
  __device__ void load(const Problem<T>& in, const Range& range, int64_t first) const {
    if (threadIdx.x >= kEdges) return;
    const int z = threadIdx.x;
    int64_t e = first + z < range.edges_end ? in.order[first + z] : -1;
    if (e < 0 || e >= in.E) e = -1;
    const int64_t j = e < 0 ? -1 : in.source[e];
    id[z] = e;
    source[z] = j >= 0 && j < in.N ? j : -1;
    target[z] = e < 0 ? -1 : clamp_to(in.target[e], range.node, range.nodes_end - 1);
  }
};

// to[z][0..width-1] = row which[z] of a matrix, zeros where that is negative.
template <class T>
__device__ void gather(const T* matrix, int width, const int64_t* which, T* to, int ld) {
  for (int z = threadIdx.x / 32; z < kEdges; z += kWarps) {
    const T* from = matrix + (which[z] < 0 ? 0 : which[z]) * width;
#pragma unroll 4
    for (int c = lane_id(); c < width; c += 32) to[z * ld + c] = which[z] < 0 ? T(0) : from[c];
  }
}

// Row which[z] of a matrix = from[z].
template <class T>
__device__ void scatter(const T* from, int ld, int width, const int64_t* which, T* matrix) {
  for (int z = threadIdx.x / 32; z < kEdges; z += kWarps)
    for (int c = lane_id(); c < width && which[z] >= 0; c += 32) matrix[which[z] * width + c] = from[z * ld + c];
}

// Sums of rows of edges at their targets, one after the other; a node is written when the next begins.
template <class T>
struct Sums {
  T *carry, *out;
  int width;
  int64_t node;  // whose sum is in `carry`

  __device__ void start() const {
    for (int c = threadIdx.x; c < width; c += kThreads) carry[c] = T(0);
  }
  __device__ void add(const T* rows, int ld, const int64_t* target) {
    int64_t at = node;
    for (int c = threadIdx.x; c < width; c += kThreads) {
      T sum = carry[c];
      at = node;
      for (int z = 0; z < kEdges; ++z) {
        if (target[z] < 0) continue;
        for (; at < target[z]; ++at, sum = T(0)) out[at * width + c] = sum;
        sum += rows[z * ld + c];
      }
      carry[c] = sum;
    }
    for (int z = 0; z < kEdges; ++z)
      if (target[z] > node) node = target[z];
  }
  __device__ void finish(int64_t end) const {
    for (int c = threadIdx.x; c < width; c += kThreads)
      for (int64_t n = node; n < end; ++n) out[n * width + c] = n == node ? carry[c] : T(0);
  }
};

// ---- bias and gate, in shared memory -------------------------------------------------------------------------------

// y [kEdges][ld] = the bias in its slots, zero elsewhere.
template <class T>
__device__ void start(const Slots& slots, const T* bias, int width, T* y, int ld) {
  for (int c = threadIdx.x % 32 + threadIdx.x / 32 * 32; c < width; c += kThreads) {
    T value = T(0);
    for (int s = 0, first = 0; bias && s < slots.count; first += slots.length[s++])
      if (c >= slots.offset[s] && c < slots.offset[s] + slots.length[s]) value = bias[first + c - slots.offset[s]];
    for (int z = 0; z < kEdges; ++z) y[z * ld + c] = value;
  }
}

template <class T>
__device__ void zero(T* y, int count) {
  for (int c = threadIdx.x; c < count; c += kThreads) y[c] = T(0);
}

// Sums of the gradient g [kEdges][ld] over the edges, for every bias.
template <class T>
__device__ void bias_gradient(const Slots& slots, const T* g, int ld, int biases, T* part, bool add) {
  for (int m = threadIdx.x; m < biases; m += kThreads) {
    int c = 0;
    for (int s = 0, first = 0; s < slots.count; first += slots.length[s++])
      if (m >= first && m < first + slots.length[s]) c = slots.offset[s] + m - first;
    T sum = T(0);
    for (int z = 0; z < kEdges; ++z) sum += g[z * ld + c];
    part[m] = add ? part[m] + sum : sum;
  }
}

// Slice of the gated part and channel in it of column c of that part; the gate's number, the slice's offset.
struct Gated { int slice, channel, gate, offset; };
__device__ __forceinline__ Gated find_gated(const Gate& gate, int c) {
  Gated at{0, 0, 0, 0};
  while (c >= at.offset + gate.mul[at.slice] * gate.d[at.slice]) {
    at.gate += gate.mul[at.slice];
    at.offset += gate.mul[at.slice] * gate.d[at.slice];
    ++at.slice;
  }
  at.channel = (c - at.offset) / gate.d[at.slice];
  at.gate += at.channel;
  return at;
}

// out [kEdges][ld_out], `width` columns, from y [kEdges][ld]
template <class T>
__device__ void gate_forward(const Gate& gate, const T* y, int ld, T* out, int ld_out, int width) {
  for (int c = threadIdx.x; c < width; c += kThreads) {
    if (gate.scalars < 0) {
      for (int z = 0; z < kEdges; ++z) out[z * ld_out + c] = y[z * ld + c];
    } else if (c < gate.scalars) {
      for (int z = 0; z < kEdges; ++z) out[z * ld_out + c] = silu(y[z * ld + c]) * static_cast<T>(gate.scalar_gain);
    } else {
      const int with = gate.scalars + find_gated(gate, c - gate.scalars).gate;
      for (int z = 0; z < kEdges; ++z)
        out[z * ld_out + c] =
            sigmoid(y[z * ld + with]) * static_cast<T>(gate.gate_gain) * y[z * ld + c + gate.gates];
    }
  }
}

// to [kEdges][ld], `dim` columns, the gradient of y from g [kEdges][ld_g], that of what the gate gives
template <class T>
__device__ void gate_backward(const Gate& gate, const T* g, int ld_g, const T* y, T* to, int ld, int dim) {
  const int first = gate.scalars + gate.gates;
  const T gain = static_cast<T>(gate.gate_gain);
  for (int c = threadIdx.x; c < dim; c += kThreads) {
    if (gate.scalars < 0) {
      for (int z = 0; z < kEdges; ++z) to[z * ld + c] = g[z * ld_g + c];
    } else if (c < gate.scalars) {
      for (int z = 0; z < kEdges; ++z)
        to[z * ld + c] = g[z * ld_g + c] * static_cast<T>(gate.scalar_gain) * silu_grad(y[z * ld + c]);
    } else if (c >= first) {
      const int with = gate.scalars + find_gated(gate, c - first).gate;
      for (int z = 0; z < kEdges; ++z) to[z * ld + c] = g[z * ld_g + c - gate.gates] * sigmoid(y[z * ld + with]) * gain;
    } else {  // a gate: the sum over the components of its channel
      int slice = 0, at = 0, channel = c - gate.scalars;
      while (channel >= gate.mul[slice]) {
        channel -= gate.mul[slice];
        at += gate.mul[slice] * gate.d[slice];
        ++slice;
      }
      at += channel * gate.d[slice];
      for (int z = 0; z < kEdges; ++z) {
        T sum = T(0);
        for (int i = at; i < at + gate.d[slice]; ++i) sum += g[z * ld_g + gate.scalars + i] * y[z * ld + first + i];
        const T s = sigmoid(y[z * ld + c]);
        to[z * ld + c] = sum * gain * s * (T(1) - s);
      }
    }
  }
}

// ---- a block -------------------------------------------------------------------------------------------------------

// What both kernels do with sixteen edges.
template <class T>
struct Block {
  const Tables& tables;
  const Problem<T>& in;
  T* shared;
  Edges edges;
  Space<T> space;

  __device__ Block(const Tables& tables, const Problem<T>& in, int64_t* ids)
      : tables(tables), in(in), shared(dynamic_shared<T>()), edges{ids, ids + kEdges, ids + 2 * kEdges},
        space{at(in.at.m), at(in.at.t), reinterpret_cast<Column*>(at(in.at.columns)), in.at.t_size, in.at.most} {
    product::load_dense<T, Role::forward>(at(in.at.dense1), tables.path1, 0, tables.count1, in.table1, threadIdx.x,
                                          kThreads);
    product::load_dense<T, Role::forward>(at(in.at.dense2), tables.path2, 0, tables.count2, in.table2, threadIdx.x,
                                          kThreads);
  }

  __device__ T* at(int offset) const { return shared + offset; }
  __device__ Factors<T> first(const T* x, int ld) const {
    return {x, ld, at(in.at.attr), in.at.ld_attr, at(in.at.dense1), in.weight1, in.precision};
  }
  __device__ Factors<T> second(const T* x, int ld) const {
    return {x, ld, at(in.at.attr), in.at.ld_attr, at(in.at.dense2), in.weight2, in.precision};
  }

  // Rows of both ends, extra features and attributes -> y1, y2, the pre-activations, and m1. Ends without a barrier.
  __device__ void forward(const Range& range, int64_t position) {
    __syncthreads();  // nobody reads the last edges
    edges.load(in, range, position);
    __syncthreads();
    gather(in.h, in.D, edges.target, at(in.at.x), in.at.ld_x);
    gather(in.h, in.D, edges.source, at(in.at.x) + in.D, in.at.ld_x);
    if (in.X) gather(in.extra, in.X, edges.id, at(in.at.x) + 2 * in.D, in.at.ld_x);
    gather(in.attr, in.A, edges.id, at(in.at.attr), in.at.ld_attr);
    start(tables.slots1, in.bias1, tables.out1, at(in.at.y1), in.at.ld_y);
    __syncthreads();
    multiply_add<T, Role::forward>(tables.one(), space, first(at(in.at.x), in.at.ld_x), at(in.at.y1), in.at.ld_y);
    __syncthreads();
    gate_forward(tables.gate1, at(in.at.y1), in.at.ld_y, at(in.at.m1), in.at.ld_m, tables.in2);
    __syncthreads();  // y2 may lie where y1 does
    start(tables.slots2, in.bias2, tables.out2, at(in.at.y2), in.at.ld_y);
    __syncthreads();
    multiply_add<T, Role::forward>(tables.two(), space, second(at(in.at.m1), in.at.ld_m), at(in.at.y2), in.at.ld_y);
    __syncthreads();
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) message_fwd_kernel(ACE_ARGUMENT(Tables) tables, Problem<T> in, T* out) {
  ACE_SHARED(int64_t, ids, 3 * kEdges);
  Block<T> block(tables, in, ids);
  const Range range(in);
  Sums<T> sums{block.at(in.at.carry), out, in.width, range.node};
  sums.start();
  for (int64_t e = range.edge; e < range.edges_end; e += kEdges) {
    block.forward(range, e);
    T* rows = block.at(in.at.g);
    gate_forward(tables.gate2, block.at(in.at.y2), in.at.ld_y, rows, in.at.ld_y, in.width);
    __syncthreads();
    sums.add(rows, in.at.ld_y, block.edges.target);
  }
  sums.finish(range.nodes_end);
}

template <class T>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 4 ? 2 : 1) message_bwd_kernel(ACE_ARGUMENT(Tables) tables, Problem<T> in,
                                                                  Gradients<T> to) {
  ACE_SHARED(int64_t, ids, 3 * kEdges);
  Block<T> block(tables, in, ids);
  const Range range(in);
  T *x = block.at(in.at.x), *y1 = block.at(in.at.y1), *m1 = block.at(in.at.m1), *y2 = block.at(in.at.y2),
    *g = block.at(in.at.g), *rows = block.space.t;
  T* const part = to.part ? to.part + blockIdx.x * to.n : nullptr;
  Sums<T> sums{block.at(in.at.carry), to.h, in.D, range.node};
  sums.start();
  if (part && range.edge >= range.edges_end)
    for (int64_t n = threadIdx.x; n < to.n; n += kThreads) part[n] = T(0);
  for (int64_t e = range.edge; e < range.edges_end; e += kEdges) {
    const bool add = e > range.edge;
    block.forward(range, e);
    gather(to.g, in.width, block.edges.target, rows, in.at.ld_y);
    __syncthreads();
    gate_backward(tables.gate2, rows, in.at.ld_y, y2, g, in.at.ld_y, tables.out2);
    __syncthreads();
    if (part) {
      bias_gradient(tables.slots2, g, in.at.ld_y, to.biases2, part + to.at_bias2, add);
      weight_gradient(tables.two(), block.space, block.second(m1, in.at.ld_m), g, in.at.ld_y, part + to.at2, add);
      __syncthreads();
    }
    zero(m1, kEdges * in.at.ld_m);
    __syncthreads();
    multiply_add<T, Role::gradient>(tables.two(), block.space, block.second(g, in.at.ld_y), m1, in.at.ld_m);
    __syncthreads();
    gate_backward(tables.gate1, m1, in.at.ld_m, y1, g, in.at.ld_y, tables.out1);
    __syncthreads();
    if (part) {
      bias_gradient(tables.slots1, g, in.at.ld_y, to.biases1, part + to.at_bias1, add);
      weight_gradient(tables.one(), block.space, block.first(x, in.at.ld_x), g, in.at.ld_y, part, add);
      __syncthreads();
    }
    if (!to.h && !to.extra) continue;
    zero(x, kEdges * in.at.ld_x);
    __syncthreads();
    multiply_add<T, Role::gradient>(tables.one(), block.space, block.first(g, in.at.ld_y), x, in.at.ld_x);
    __syncthreads();
    if (to.h) sums.add(x, in.at.ld_x, block.edges.target);
    if (to.h) scatter(x + in.D, in.at.ld_x, in.D, block.edges.id, to.sent);
    if (to.extra) scatter(x + 2 * in.D, in.at.ld_x, in.X, block.edges.id, to.extra);
  }
  if (to.h) sums.finish(range.nodes_end);
}

// h [N, D] += the rows of sent [E, D] that each node sent, in order; a thread for a node and a column.
template <class T>
__global__ void __launch_bounds__(kThreads) sources_kernel(const T* sent, const int64_t* order, const int64_t* ptr, T* h,
                                                           int64_t N, int64_t E, int D) {
  const int64_t item = int64_t(blockIdx.x) * kThreads + threadIdx.x, n = item / D;
  if (n >= N) return;
  const int c = static_cast<int>(item % D);
  const int64_t begin = clamp_to(ptr[n], 0, E), end = clamp_to(ptr[n + 1], begin, E);
  T sum = h[item];
#pragma unroll 4
  for (int64_t p = begin; p < end; ++p) {
    const int64_t e = order[p];
    sum += e >= 0 && e < E ? sent[e * D + c] : T(0);
  }
  h[item] = sum;
}

// Sums over the blocks' parts in order, in 8 stretches that are added in order. out: weight1, weight2, bias1, bias2.
template <class T>
struct Outputs { T* to[4]; int64_t begin[5]; };

template <class T>
__global__ void __launch_bounds__(kThreads) parts_kernel(const T* part, int64_t n, int blocks, Outputs<T> out) {
  ACE_SHARED(T, sums, kThreads);
  const int lane = threadIdx.x % 32, team = threadIdx.x / 32;
  const int64_t item = int64_t(blockIdx.x) * 32 + lane;
  const int begin = blocks * team / 8, end = blocks * (team + 1) / 8;
  T sum = T(0);
#pragma unroll 8
  for (int b = begin; b < end; ++b) sum += item < n ? part[b * n + item] : T(0);
  sums[threadIdx.x] = sum;
  __syncthreads();
  if (team || item >= n) return;
  for (int t = 1; t < 8; ++t) sum += sums[t * 32 + lane];
  for (int o = 0; o < 4; ++o)
    if (item >= out.begin[o] && item < out.begin[o + 1] && out.to[o]) out.to[o][item - out.begin[o]] = sum;
}

}  // namespace ace::message
