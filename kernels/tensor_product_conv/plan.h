// How channels.h takes an operator's tables: packed rows of nodes; for each path its code and its coefficients by slot.
#pragma once

#include <optional>

#include "tensor_product/interleave.h"
#include "tensor_product/paths.h"
#include "channels.h"
#include "nodes.h"

namespace ace::conv {

// An irrep slice: `mul` channels of d components from column o on, packed from `at` on as [d][padded].
struct Packed { int64_t o, mul, d, at, padded; };

template <class T>
struct Packing {
  std::vector<Packed> slices;
  int64_t dim, size = 0;
  bool ir_mul;
  Packing(int64_t dim, bool ir_mul) : dim(dim), ir_mul(ir_mul) {}

  // Where a slice is packed; -1 where it overlaps another one.
  int64_t add(int64_t o, int64_t mul, int64_t d) {
    for (const Packed& s : slices) {
      if (s.o == o && s.mul == mul && s.d == d) return s.at;
      if (s.o < o + mul * d && o < s.o + s.mul * s.d) return -1;
    }
    slices.push_back({o, mul, d, size, round_up<T>(mul)});
    size += d * round_up<T>(mul);
    return slices.back().at;
  }

  // Rows are packed as they lie.
  bool trivial() const {
    for (const Packed& s : slices)
      if ((!ir_mul && s.d > 1) || s.padded != s.mul || s.at != s.o) return false;
    return size == dim;
  }

  void pack(const T* row, T* to) const {
    for (const Packed& s : slices)
      product::with_degree(s.d, [&]<int D>() { product::widen<T, D>(row + s.o, s.mul, s.d, ir_mul, to + s.at); });
  }

  // Columns of no slice are left as they are.
  void unpack(const T* from, T* row) const {
    for (const Packed& s : slices)
      product::with_degree(s.d, [&]<int D>() { product::narrow<T, D>(from + s.at, s.mul, s.d, ir_mul, row + s.o); });
  }
};

// All rows of a matrix, packed; the matrix itself where they lie so.
template <class T>
class PackedRows {
 public:
  PackedRows(const T* matrix, int64_t rows, const Packing<T>& packing)
      : own_(packing.trivial() ? 0 : rows * packing.size), data_(packing.trivial() ? matrix : own_), ld_(packing.size) {
    if (packing.trivial()) return;
    T* to = own_;
    parallel(rows, std::max<int64_t>(1, 16384 / (packing.size + 1)),
             [&](int64_t n) { packing.pack(matrix + n * packing.dim, to + n * ld_); });
  }
  const T* operator[](int64_t row) const { return data_ + row * ld_; }

 private:
  Scratch<T> own_;
  const T* data_;
  int64_t ld_;
};

template <class T>
struct ChannelPath {
  int64_t x, y, x2, weight, channels, padded, slots, ahead;  // x, y: first of the path in packed rows of in1 and out
  std::vector<std::vector<Term>> terms;                      // of each slot; their j are columns of x2
  Pairs pairs;
  Code<T> code;
};

template <class T>
struct Plan {
  Packing<T> in1, out;
  std::vector<ChannelPath<T>> paths;
  int64_t slots = 0, weights = 0;  // the most slots of a path; weights of all paths, in whole vectors
};

// The slots of a path: the compiler's where it has code for the degrees and these cover the coefficients.
template <class T>
void number_slots(const product::Path& p, ChannelPath<T>& to) {
  const int64_t l1 = p.d1 / 2, l3 = p.d3 / 2;
  std::vector<int64_t> slot(p.d1 * p.d3, -1);
  const auto covers = [&](int64_t l2) {
    return std::all_of(p.pairs.begin(), p.pairs.end(),
                       [&](const product::Pair& q) { return couples(l1, l2, l3, q.i, q.k); });
  };
  const int64_t l2 = p.d2 / 2;
  const bool known = std::max({l1, l2, l3}) <= kMaxDegree && triangle(l1, l2, l3) && covers(l2);
  to.slots = 0;
  for (int64_t k = 0; k < p.d3; ++k)
    for (int64_t i = 0; i < p.d1; ++i)
      if (known && couples(l1, l2, l3, i, k)) slot[i * p.d3 + k] = to.slots++;
  if (!known)
    for (const product::Pair& q : p.pairs) slot[q.i * p.d3 + q.k] = to.slots++;
  to.code = known ? code_of<T>(l1, l2, l3) : Code<T>{};
  to.terms.resize(to.slots);
  to.pairs.of_k.resize(p.d3);
  to.pairs.of_i.resize(p.d1);
  for (const product::Pair& q : p.pairs) {
    const int64_t s = slot[q.i * p.d3 + q.k];
    for (const product::Term& t : q.terms) to.terms[s].push_back({p.o2 + t.j, t.c});
    to.pairs.of_k[q.k].push_back({q.i, s});
    to.pairs.of_i[q.i].push_back({q.k, s});
  }
}

// None where a path is of another mode, has several channels of in2 or no weights, where slices overlap, or where more
// than half of the lanes would be empty.
template <class T>
std::optional<Plan<T>> make_plan(const std::vector<product::Path>& paths, const Ints& flat, const Ints& dims) {
  Plan<T> plan{{dims[0], dims[3] != 0}, {dims[2], dims[3] != 0}, {}};
  int64_t used = 0, taken = 0;
  for (size_t n = 0; n < paths.size(); ++n) {
    const product::Path& p = paths[n];
    if (flat[13 * n + 12] != product::UVU || p.V != 1 || p.weight < 0) return std::nullopt;
    ChannelPath<T> path{plan.in1.add(p.o1, p.U, p.d1), plan.out.add(p.o3, p.W, p.d3), p.o2, p.weight, p.U,
                        round_up<T>(p.U), 0, 2 * p.U, {}, {}, {}};
    if (path.x < 0 || path.y < 0) return std::nullopt;
    number_slots(p, path);
    used += path.slots * path.channels;
    taken += path.slots * path.padded;
    plan.slots = std::max(plan.slots, path.slots);
    plan.weights += path.padded;
    plan.paths.push_back(std::move(path));
  }
  if (paths.empty() || taken > 2 * used) return std::nullopt;
  return plan;
}

}  // namespace ace::conv
