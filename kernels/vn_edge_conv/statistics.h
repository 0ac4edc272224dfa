// Mean and variance of the norms of all edges, and their gradient.
#pragma once

#include "block.h"

namespace ace::edge {

template <class T>
struct Statistics {
  Inputs<T> in;
  T *mean, *var;  // [C]

  void run() const {
    const int64_t parts = in.B * ceil_div(in.N, kBlock);
    const Scratch<double> part_mean(parts * in.C), part_square(parts * in.C);  // [parts][C]
    for_blocks(in, [&](const Chunk<T>& chunk, int64_t begin, int64_t end, int64_t part) {
      const int64_t at = part * in.C + chunk.first();
      block(chunk, begin, end, part_mean + at, part_square + at);
    });
    Scratch<double> centre(in.C), square(in.C);
    std::fill_n(static_cast<double*>(centre), in.C, 0.0);
    std::fill_n(static_cast<double*>(square), in.C, 0.0);
    const double count = std::max<int64_t>(in.B * in.N, 1);
    for (int64_t i = 0; i < parts; ++i)
      for (int64_t c = 0; c < in.C; ++c) centre[c] += part_mean[i * in.C + c] * (nodes(i) / count);
    for (int64_t i = 0; i < parts; ++i)
      for (int64_t c = 0; c < in.C; ++c) {
        const double away = part_mean[i * in.C + c] - centre[c];
        square[c] += (part_square[i * in.C + c] + away * away) * (nodes(i) / count);
      }
    for (int64_t c = 0; c < in.C; ++c) mean[c] = static_cast<T>(centre[c]), var[c] = static_cast<T>(square[c]);
  }

  double nodes(int64_t part) const {
    const int64_t block = part % ceil_div(in.N, kBlock);
    return in.K ? std::min(kBlock, in.N - block * kBlock) : 0;
  }

  // Mean and variance of the edges of nodes begin..end-1: about each node's own mean m + off, where off is what m lost
  // to rounding, then of these means.
  void block(const Chunk<T>& chunk, int64_t begin, int64_t end, double* block_mean, double* block_var) const {
    if (!in.K) return std::fill_n(block_mean, chunk.count(), 0.0), void(std::fill_n(block_var, chunk.count(), 0.0));
    const Scratch<T> radii(in.K * lanes<T>);
    Vec<T> means[kBlock], offs[kBlock];
    Total<T> mean, within, between;
    const T share = T(1) / in.K;
    for (int64_t n = begin; n < end; ++n) {
      const Three<T> centre = chunk.centre_p(n);
      const int64_t* neighbours = chunk.neighbours(n);
      Vec<T> sum{}, squares{}, off{};
      for (int64_t k = 0; k < in.K; ++k) {
        const int64_t j = neighbours[k];
        Vec<T> r{};
        if (chunk.real(j)) {
          const Three<T> u = chunk.neighbour_p(j) + centre;
          r = square_root<T>(dot(u, u)) + kEps<T>;
        }
        store(radii + k * lanes<T>, r);
        sum += r;
      }
      const Vec<T> m = means[n - begin] = sum * share;
      for (int64_t k = 0; k < in.K; ++k) {
        const Vec<T> away = load(radii + k * lanes<T>) - m;
        squares += away * away;
        off += away;
      }
      off = offs[n - begin] = off * share;
      mean.add(m), mean.add(off);
      within.add(squares * share - off * off);
    }
    const double count = static_cast<double>(end - begin);
    Vec<T> m{};
    for (int l = 0; l < lanes<T>; ++l) m[l] = static_cast<T>(mean.lane[l] / count);
    for (int64_t n = 0; n < end - begin; ++n) {
      const Vec<T> away = (means[n] - m) + offs[n];
      between.add(away * away);
    }
    for (int l = 0; l < lanes<T>; ++l) {
      const double lost = mean.lane[l] / count - m[l];
      within.lane[l] = (within.lane[l] + between.lane[l]) / count - lost * lost;
      mean.lane[l] /= count;
    }
    std::copy_n(mean.lane, chunk.count(), block_mean);
    std::copy_n(within.lane, chunk.count(), block_var);
  }
};

template <class T>
struct StatisticsBackward {
  Inputs<T> in;
  const T *g_mean, *g_var, *mean;  // [C]
  T* g_p;                          // [B, N, 3, 2C]

  void run() const {
    for_clouds(in, [&](const Chunk<T>& chunk, int64_t cloud, T* targets) {
      constexpr int L = lanes<T>;
      const T share = T(1) / static_cast<T>(in.B * in.N * in.K);
      const int64_t first = chunk.first(), count = chunk.count();
      const Vec<T> m = load_some(mean + first, count), flat = load_some(g_mean + first, count) * share;
      const Vec<T> steep = load_some(g_var + first, count) * (T(2) * share);
      T* target = g_p + cloud * in.N * 6 * in.C + first;
      for (int64_t n = 0; n < in.N; ++n) {
        const Three<T> centre = chunk.centre_p(n);
        Three<T> sum{};
        for (int64_t k = 0; k < in.K; ++k) {
          const int64_t j = chunk.neighbours(n)[k];
          if (!chunk.real(j)) continue;
          const Three<T> u = chunk.neighbour_p(j) + centre;
          const Vec<T> r = square_root<T>(dot(u, u));
          const Vec<T> g = r == T(0) ? Vec<T>{} : (flat + steep * (r + kEps<T> - m)) / r;
          const Three<T> g_u = g * u;
          g_u.add_to(targets + j * 3 * L, L);
          sum = sum + g_u;
        }
        sum.to_some(target + n * 6 * in.C + in.C, 2 * in.C, count);
      }
      for (int64_t n = 0; n < in.N; ++n)
        Three<T>::from(targets + n * 3 * L, L).to_some(target + n * 6 * in.C, 2 * in.C, count);
    });
  }
};

}  // namespace ace::edge
