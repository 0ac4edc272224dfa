// Pairs of nodes in blocks with their distances and cutoffs, and sums at the nodes that do not depend on the threads.
#pragma once

#include "vector_math.h"

namespace ace::cfconv {

constexpr int64_t kRows = 64;  // pairs of a block

struct Chunk {
  int64_t first, last;  // nodes whose edges it takes
  int64_t low, high;    // nodes that these edges touch
};

// Edges by target, shared out; where every edge comes both ways, j > i stands for both of a pair.
struct Adjacency {
  Adjacency(const Tensor& neighbour_, const Tensor& ptr_, const Tensor& chunks_, bool symmetric)
      : neighbour(in<int64_t>(neighbour_)), ptr(in<int64_t>(ptr_)), nodes(ptr_.size(0) - 1), edges(neighbour_.size(0)),
        symmetric(symmetric) {
    const int64_t* from = in<int64_t>(chunks_);
    const auto inside = [&](int64_t n) { return std::clamp<int64_t>(n, 0, nodes); };
    for (int64_t c = 0; c < chunks_.size(0); ++c, from += 4)
      chunks.push_back({inside(from[0]), inside(from[1]), inside(from[2]), inside(from[3])});
  }
  int64_t edge(int64_t at) const { return std::clamp<int64_t>(at, 0, edges); }

  const int64_t *neighbour, *ptr;
  int64_t nodes, edges;
  bool symmetric;
  std::vector<Chunk> chunks;
};

// Rows of a matrix, each padded with zeros to whole vectors.
template <class T>
class Rows {
 public:
  Rows(const T* data, int64_t rows, int64_t width)
      : ld(round_up<T>(width)), data_(data), copy_(ld == width ? 0 : rows * ld) {
    if (ld == width) return;
    data_ = copy_;
    for (int64_t i = 0; i < rows; ++i)
      std::fill_n(std::copy_n(data + i * width, width, copy_ + i * ld), ld - width, T(0));
  }
  const T* operator[](int64_t i) const { return data_ + i * ld; }
  const int64_t ld;

 private:
  const T* data_;
  Scratch<T> copy_;
};

// Each chunk's own sums at the nodes it touches.
template <class T>
class NodeSums {
 public:
  NodeSums(const Adjacency& graph, int64_t width) : ld_(width), graph_(graph), data_(size(graph, width)) {
    for (const Chunk& c : graph.chunks) {
      rows_.push_back(data_ + (total_ - c.low) * ld_);
      total_ += c.high - c.low;
    }
  }
  void clear(int64_t chunk) const {
    const Chunk& c = graph_.chunks[chunk];
    std::fill_n(row(chunk, c.low), (c.high - c.low) * ld_, T(0));
  }
  T* row(int64_t chunk, int64_t node) const { return rows_[chunk] + node * ld_; }

  // y [N, width], all chunks in order
  void collect(int64_t width, T* y) const {
    parallel(graph_.nodes, ceil_div(16384, width + 1), [&](int64_t n) {
      std::fill_n(y + n * width, width, T(0));
      for (size_t c = 0; c < graph_.chunks.size(); ++c) {
        if (n < graph_.chunks[c].low || n >= graph_.chunks[c].high) continue;
        const T* from = row(c, n);
        for (int64_t k = 0; k < width; ++k) y[n * width + k] += from[k];
      }
    });
  }

 private:
  static int64_t size(const Adjacency& graph, int64_t width) {
    int64_t total = 0;
    for (const Chunk& c : graph.chunks) total += (c.high - c.low) * width;
    return total;
  }

  int64_t ld_, total_ = 0;
  const Adjacency& graph_;
  Scratch<T> data_;
  std::vector<T*> rows_;
};

template <class T>
inline T lane_sum(Vec<T> v) {
  alignas(kVectorBytes) T a[lanes<T>];
  store(a, v);
  for (int half = lanes<T> / 2; half >= 1; half /= 2)
    for (int l = 0; l < half; ++l) a[l] += a[l + half];
  return a[0];
}

// A block of pairs within the cutoff, and on the way back the gradients of their distances.
template <class T>
struct Pairs {
  int64_t n = 0, i[kRows], j[kRows];
  bool both[kRows];  // the edge i -> j too
  alignas(64) T r[3][kRows], d[kRows];           // x_i - x_j and its length
  alignas(64) T c0[kRows], c1[kRows], c2[kRows];  // the cutoff and its derivatives
  T t[kRows], step[3][kRows];                    // the direction of a second derivative: of d, of r
  T g_d[kRows], g_t[kRows];

  // Calls f() for each block of a chunk's pairs.
  template <class F>
  void each(const Adjacency& graph, const Chunk& chunk, const T* pos, T cutoff, F&& f) {
    n = 0;
    const auto flush = [&] {
      cut(cutoff);
      f();
      n = 0;
    };
    for (int64_t a = chunk.first; a < chunk.last; ++a)
      for (int64_t e = graph.edge(graph.ptr[a]); e < graph.edge(graph.ptr[a + 1]); ++e) {
        const int64_t b = graph.neighbour[e];
        if (b < chunk.low || b >= chunk.high || (graph.symmetric && b < a)) continue;
        T square = 0;
        for (int k = 0; k < 3; ++k) {
          r[k][n] = pos[3 * a + k] - pos[3 * b + k];
          square += r[k][n] * r[k][n];
        }
        d[n] = std::sqrt(square);
        if (d[n] >= cutoff) continue;  // NaN stays
        i[n] = a, j[n] = b, both[n] = graph.symmetric && a != b;
        if (++n == kRows) flush();
      }
    if (n) flush();
  }

  // t: how fast d changes where the nodes move along `move` [N, 3]
  void along(const T* move) {
    for (int64_t z = 0; z < n; ++z) {
      T dot = 0;
      for (int k = 0; k < 3; ++k) {
        step[k][z] = move[3 * i[z] + k] - move[3 * j[z] + k];
        dot += step[k][z] * r[k][z];
      }
      t[z] = d[z] == 0 ? T(0) : dot / d[z];
    }
  }

  // Gradients of d, and with `second` of t, to those of the positions; coincident nodes have none.
  void add_to_positions(const NodeSums<T>& sums, int64_t chunk, bool second) const {
    for (int64_t z = 0; z < n; ++z) {
      if (d[z] == 0) continue;
      const T inverse = 1 / d[z];
      T *at_i = sums.row(chunk, i[z]), *at_j = sums.row(chunk, j[z]);
      for (int k = 0; k < 3; ++k) {
        const T unit = r[k][z] * inverse;
        T g = g_d[z] * unit;
        if (second) g += g_t[z] * (step[k][z] - t[z] * unit) * inverse;
        at_i[k] += g;
        at_j[k] -= g;
      }
    }
  }

 private:
  void cut(T cutoff) {
    const T w = T(3.14159265358979323846) / cutoff;
    std::fill(d + n, d + ceil_div(n, lanes<T>) * lanes<T>, T(0));
    for (int64_t z = 0; z < n; z += lanes<T>) {
      const auto [s, c] = sin_cos<T>(load(static_cast<const T*>(d) + z) * w);
      store(c0 + z, (c + T(1)) * T(0.5));
      store(c1 + z, s * (T(-0.5) * w));
      store(c2 + z, c * (T(-0.5) * w * w));
    }
  }
};

// to[m, width] = the sums of all chunks, in order; those of a chunk have rows of ld.
template <class T>
void collect(const T* sums, int64_t chunks, int64_t stride, int64_t rows, int64_t width, int64_t ld, T* to) {
  parallel(rows, ceil_div(16384, chunks * ld + 1), [&](int64_t m) {
    std::fill_n(to + m * width, width, T(0));
    for (int64_t c = 0; c < chunks; ++c)
      for (int64_t k = 0; k < width; ++k) to[m * width + k] += sums[c * stride + m * ld + k];
  });
}

}  // namespace ace::cfconv
