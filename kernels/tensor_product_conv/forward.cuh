// The forward kernel: a block walks a stretch of edges sorted by target, a few at a time; its warps share out the
// paths. The sum at a node is kept in shared memory as a row of out lies. A node whose edges lie in several stretches
// has its first part in out and the others apart, to be added in order (sum_parts_kernel).
#pragma once

#include "stage.cuh"

namespace ace::conv {

template <class T>
struct Forward {
  const Plan& plan;
  const Operands<T>& in;
  const Stage<T>& stage;
  const PathInfo<T>* info;
  const Facts<T>& facts;
  T* sum;  // [dim3], in shared memory
  int lane;

  // The paths of a job: all (l1, l2, l3) with one slice of in2, for `count` edges from a slot on.
  template <int L1, int L2, int G>
  __device__ __forceinline__ void run(const Job& job, int slot, int count) const {
    constexpr int low = L1 < L2 ? L2 - L1 : L1 - L2, high = L1 + L2 < kMaxDegree ? L1 + L2 : kMaxDegree;
    constexpr int d1 = 2 * L1 + 1, d2 = 2 * L2 + 1, degrees = high - low + 1;
    constexpr int width = (high + 1) * (high + 1) - low * low;  // components of all degrees
    const Unit& unit = plan.unit[job.unit];
    const bool inside = lane < unit.count;
    const int channel = inside ? lane : 0;
    const Strides s1 = strides(in.ir_mul, unit.mul, d1);
    int path[degrees], w_at[degrees][G];
    each<degrees>([&](auto n) {
      path[n.value] = -1;
      for (int m = 0; m < job.count; ++m)
        if (plan.entry[job.first + m].d3 == 2 * (low + n.value) + 1) path[n.value] = job.first + m;
#pragma unroll
      for (int g = 0; g < G; ++g) w_at[n.value][g] = path[n.value] < 0 ? 0 : plan.entry[path[n.value]].w[g] + channel;
    });
    const int o2 = plan.entry[job.first].o2;
    int x_at[G];
#pragma unroll
    for (int g = 0; g < G; ++g) x_at[g] = unit.x[g] + channel * s1.u;
    T total[G][width] = {};
    Row<T> row = stage.row(slot);
#pragma unroll 1
    for (int e = 0; e < count; ++e, stage.next(row)) {
      T x[G][d1], y[d2];
#pragma unroll
      for (int g = 0; g < G; ++g)
#pragma unroll
        for (int i = 0; i < d1; ++i) x[g][i] = row.x1[x_at[g] + i * s1.i];
#pragma unroll
      for (int j = 0; j < d2; ++j) y[j] = row.x2[o2 + j];
      each<degrees>([&](auto n) {
        constexpr int L3 = low + n.value;
        if (path[n.value] < 0) return;
        T w[G];
#pragma unroll
        for (int g = 0; g < G; ++g) w[g] = row.weight[w_at[n.value][g]];
        contract<T, L1, L2, L3, L3 * L3 - low * low>(total, x, y, w);
      });
    }
    each<degrees>([&](auto n) {
      constexpr int L3 = low + n.value, d3 = 2 * L3 + 1;
      if (path[n.value] < 0 || !inside) return;
      const Entry& entry = plan.entry[path[n.value]];
      const Strides s3 = strides(in.ir_mul, unit.mul, d3);
#pragma unroll
      for (int g = 0; g < G; ++g) {
        const T scale = facts.scale[2 * path[n.value] + g];
#pragma unroll
        for (int k = 0; k < d3; ++k)
          sum[entry.y[g] + lane * s3.u + k * s3.i] += scale * total[g][L3 * L3 - low * low + k];
      }
    });
  }

  // One path after the other, from the table.
  __device__ void run_table(const Job& job, int slot, int count) const {
    const Unit& unit = plan.unit[job.unit];
    for (int n = job.first; n < job.first + job.count; ++n)
      for (int g = 0; g < unit.streams; ++g)
        for (int e = 0; e < count; ++e) {
          const Entry& entry = plan.entry[n];
          const OnePath<T> path(unit, entry, g, stage.row(slot + e), in.ir_mul);
          if (lane >= unit.count) continue;
          T* y = sum + entry.y[g];
          path.over(in.table, info[entry.path[g]], [&](int v, int i, int j, int k, T c) {
            y[path.out(k)] += c * path.weight(v) * path.x[path.in1(i)] * path.y[path.in2(v, j)];
          });
        }
  }

  __device__ bool known(const Job& job) const {
    bool all = true;
    for (int n = job.first; !facts.all && n < job.first + job.count; ++n) all = all && facts.known[n];
    return all;
  }

  template <int G>
  __device__ __forceinline__ void run_known(const Job& job, int slot, int count) const {
    switch (plan.unit[job.unit].d1 / 2 * 4 + plan.entry[job.first].d2 / 2) {
#define ACE_CASE(l1, l2) \
  case 4 * l1 + l2: return run<l1, l2, G>(job, slot, count);
      ACE_CASE(0, 0) ACE_CASE(0, 1) ACE_CASE(0, 2) ACE_CASE(0, 3) ACE_CASE(1, 0) ACE_CASE(1, 1) ACE_CASE(1, 2)
      ACE_CASE(1, 3) ACE_CASE(2, 0) ACE_CASE(2, 1) ACE_CASE(2, 2) ACE_CASE(2, 3) ACE_CASE(3, 0) ACE_CASE(3, 1)
      ACE_CASE(3, 2) ACE_CASE(3, 3)
#undef ACE_CASE
    }
  }

  // The jobs of a warp for `count` edges from a slot on.
  template <int G>
  __device__ __forceinline__ void run_jobs(int warp, int slot, int count) const {
#pragma unroll 1
    for (int n = plan.begin[warp]; n < plan.begin[warp + 1]; ++n) {
      const Job& job = plan.job[n];
      if (!known(job)) run_table(job, slot, count);
      else if (G == 2 && plan.unit[job.unit].streams == 2) run_known<G>(job, slot, count);
      else run_known<1>(job, slot, count);
    }
  }
};

// Where sums at nodes go: rows of out, or for a node that began in an earlier stretch, the block's row of `part`.
template <class T>
struct Target {
  T *out, *part;
  bool add, atomic;  // add: earlier launches have written; atomic: everything is added to out, which begins as zeros
};

// Writes the sum at a node and clears it, by all threads; barriers around it are the caller's.
template <class T>
__device__ __forceinline__ void flush(T* sum, int dim, T* to, bool add, bool atomic) {
  for (int c = threadIdx.x; c < dim; c += blockDim.x) {
    const T value = sum[c];
    sum[c] = T(0);
    if (atomic) atomicAdd(to + c, value);
    else to[c] = add ? to[c] + value : value;
  }
}

template <class T, int G>
__global__ void __launch_bounds__(kThreads<T>, 1) conv_fwd_kernel(ACE_ARGUMENT(Plan) plan, Operands<T> in, Graph graph,
    const PathInfo<T>* info, Target<T> target, int most, Sizes sizes) {
  T* const sum = dynamic_shared<T>();
  const Stage<T> stage(sum + (in.dim3 + 3) / 4 * 4, in, sizes);
  int* const space = reinterpret_cast<int*>(stage.weight + (in.shared ? 1 : 2 * sizes.chunk) * sizes.ld_weight);
  const Facts<T> facts(space + 4 * most, plan, info);
  const int64_t begin = int64_t(blockIdx.x) * most;
  const Stretch stretch(graph, space, begin, most, graph.edges);
  const int64_t continued = Stretch::continued(graph, begin);
  const Forward<T> forward{plan, in, stage, info, facts, sum, lane_id()};
  const int warp = threadIdx.x / 32;
  for (int c = threadIdx.x; c < in.dim3; c += blockDim.x) sum[c] = T(0);
  stage.fetch_shared();
  __syncthreads();
  stage.fetch(stretch, 0, 0);
  for (int chunk = 0, half = 0; chunk < stretch.count; chunk += sizes.chunk, half ^= 1) {
    stage.fetch(stretch, chunk + sizes.chunk, half ^ 1);
    copy_wait<1>();
    __syncthreads();
    const int end = chunk + sizes.chunk < stretch.count ? chunk + sizes.chunk : stretch.count;
    for (int first = chunk, last; first < end; first = last) {
      const int node = stretch.target[first];
      for (last = first + 1; last < end && stretch.target[last] == node;) ++last;
      if (node < 0) continue;
#pragma unroll 1
      for (int w = warp; w < kWarps; w += kThreads<T> / 32)
        forward.template run_jobs<G>(w, half * sizes.chunk + first - chunk, last - first);
      if (last < stretch.count && stretch.target[last] == node) continue;
      __syncthreads();
      const bool apart = node == continued && !target.atomic;
      flush(sum, in.dim3, apart ? target.part + int64_t(blockIdx.x) * in.dim3 : target.out + int64_t(node) * in.dim3,
            target.add, target.atomic);
      __syncthreads();
    }
    __syncthreads();
  }
}

}  // namespace ace::conv
