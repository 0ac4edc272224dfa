// radius_graph: lattices, and the atoms of all graphs in bins.
#pragma once

#include "native.h"

#include <array>
#include <limits>

namespace ace::radius {

using Triple = std::array<double, 3>;
using Whole = std::array<int64_t, 3>;

constexpr int64_t kReach = 1023;            // images in one direction that a key holds
constexpr int64_t kZero = kReach + 1;       // what the image 0 is in a key
constexpr int64_t kStill = (kZero << 22) + (kZero << 11) + kZero;
constexpr double kVisits = 1 << 30;         // bins around an atom
constexpr double kFar = 1 << 20;            // cells from the origin
constexpr double kFlat = 1e-6;              // volume of a cell over the product of its edges, at least
constexpr double kSlack = 1 + 1e-5;         // bins are thicker than r by what rounding may move an atom
constexpr int64_t kPlain = 32;              // atoms of a graph that are one bin

// What may be wrong with the values, in the order of problems.NAMES.
enum Problem { kPosition, kOrder, kRange, kCell, kReachable, kFarAway, kProblems };
using Problems = std::array<int64_t, kProblems>;  // the first atom concerned, or -1
constexpr Problems kNone = {-1, -1, -1, -1, -1, -1};

inline void add(Problems& bad, const Problems& later) {
  for (int k = 0; k < kProblems; ++k)
    if (bad[k] < 0) bad[k] = later[k];
}

inline Triple cross(const Triple& a, const Triple& b) {
  return {a[1] * b[2] - a[2] * b[1], a[2] * b[0] - a[0] * b[2], a[0] * b[1] - a[1] * b[0]};
}
inline double dot(const Triple& a, const Triple& b) { return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]; }
inline bool nothing(const Triple& a) { return a[0] == 0 && a[1] == 0 && a[2] == 0; }
inline int64_t floor_div(int64_t a, int64_t b) { return a >= 0 ? a / b : -((b - 1 - a) / b); }

struct Lattice {
  std::array<Triple, 3> row{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};
  std::array<Triple, 3> column{{{1, 0, 0}, {0, 1, 0}, {0, 0, 1}}};  // of the inverse: dot(x, column[k]) is a fraction
  Triple height{1, 1, 1};
  std::array<bool, 3> periodic{false, false, false};
  bool any = false;  // periodic directions

  // In place of vectors without period: unit vectors orthogonal to all others. False where the others are dependent.
  bool set(const std::array<Triple, 3>& cell, const bool* pbc) {
    for (int k = 0; k < 3; ++k) {
      periodic[k] = pbc[k];
      any |= pbc[k];
      row[k] = pbc[k] ? cell[k] : Triple{0, 0, 0};
    }
    if (!any) {
      *this = Lattice{};
      return true;
    }
    for (int k = 0; k < 3; ++k)
      if (!periodic[k]) row[k] = orthogonal(row[(k + 1) % 3], row[(k + 2) % 3], k);
    for (int k = 0; k < 3; ++k) column[k] = cross(row[(k + 1) % 3], row[(k + 2) % 3]);
    const double volume = dot(row[0], column[0]);
    double edges = 1;
    for (const Triple& v : row) edges *= std::sqrt(dot(v, v));
    if (!(std::abs(volume) > kFlat * edges)) return false;
    for (int k = 0; k < 3; ++k) {
      for (double& c : column[k]) c /= volume;
      height[k] = 1 / std::sqrt(dot(column[k], column[k]));
    }
    return true;
  }

  // A unit vector orthogonal to a and b, either of which may still be missing (zero).
  static Triple orthogonal(const Triple& a, const Triple& b, int k) {
    Triple v = cross(a, b);
    const Triple alone = {a[0] + b[0], a[1] + b[1], a[2] + b[2]};
    if (nothing(v)) {
      Triple axis{0, 0, 0};
      int least = 0;
      for (int i = 1; i < 3; ++i)
        if (std::abs(alone[i]) < std::abs(alone[least])) least = i;
      axis[nothing(alone) ? k : least] = 1;
      if (nothing(alone)) return axis;
      v = cross(alone, axis);
    }
    const double length = std::sqrt(dot(v, v));
    for (double& c : v) c /= length;
    return v;
  }

  Triple moved(const Whole& n) const {  // n of the vectors, summed in a fixed order
    Triple s;
    for (int d = 0; d < 3; ++d) s[d] = (n[2] * row[2][d] + n[1] * row[1][d]) + n[0] * row[0][d];
    return s;
  }
};

// Candidates of all graphs: those of a bin one after the other, by index. Vectors may be read behind the last one.
struct Atoms {
  explicit Atoms(int64_t n, int64_t graphs, bool periodic)
      : x(n + 8), y(n + 8), z(n + 8), label(n + 8), starts(n + graphs), wraps(periodic ? 3 * n : 1) {}
  Scratch<double> x, y, z;
  Scratch<int64_t> label;   // the index in the graph << 33, plus the key of no image
  Scratch<int64_t> starts;  // bin b holds the candidates starts[b] .. starts[b + 1] - 1
  Scratch<int32_t> wraps;   // [N, 3] by atom: whole cells taken off its position; not for open systems
};

struct Graph {
  int64_t start, stop;  // atoms
  int64_t base;         // number of the first bin
  int64_t batch;
  Lattice lattice;
  Whole bins{1, 1, 1}, reach{0, 0, 0};

  int64_t size() const { return stop - start; }
  int64_t total() const { return bins[0] * bins[1] * bins[2]; }

  // Puts the atoms into bins; what is wrong goes to `bad`.
  template <class T>
  void place(const T* pos, double r, bool shifts, Atoms& atoms, Problems& bad) {
    const bool plain = size() <= kPlain;
    if (plain && !lattice.any) {
      for (int64_t i = start; i < stop; ++i) put(i, i, {pos[3 * i], pos[3 * i + 1], pos[3 * i + 2]}, atoms);
      if (shifts) std::fill(atoms.wraps + 3 * start, atoms.wraps + 3 * stop, 0);
      atoms.starts[base] = start, atoms.starts[base + 1] = stop;
      return;
    }
    std::vector<Triple> x(size()), fraction(size());
    constexpr int64_t part = 4096;  // of a large graph, for a thread
    std::vector<Problems> found(ceil_div(size(), part), kNone);
    parallel(found.size(), 1, [&](int64_t p) {
      for (int64_t i = p * part; i < std::min(size(), (p + 1) * part); ++i)
        x[i] = wrapped(pos + 3 * (start + i), start + i, shifts, fraction[i], atoms, found[p]);
    });
    for (const Problems& f : found) add(bad, f);
    Triple low{0, 0, 0}, scale;
    divide(fraction, r, low, scale, bad);
    std::vector<int64_t> number(size()), next(total() + 1, 0);
    for (int64_t i = 0; i < size(); ++i) {
      Whole bin;
      for (int k = 0; k < 3; ++k) {
        const double f = (fraction[i][k] - low[k]) * scale[k];
        bin[k] = f > 0 ? static_cast<int64_t>(std::min<double>(f, bins[k] - 1)) : 0;
      }
      number[i] = (bin[0] * bins[1] + bin[1]) * bins[2] + bin[2];
      ++next[number[i] + 1];
    }
    for (int64_t b = 0; b < total(); ++b) next[b + 1] += next[b];
    for (int64_t b = 0; b <= total(); ++b) atoms.starts[base + b] = start + next[b];
    for (int64_t i = 0; i < size(); ++i) put(start + i, start + next[number[i]]++, x[i], atoms);
  }

 private:
  void put(int64_t atom, int64_t p, const Triple& x, Atoms& atoms) const {
    atoms.x[p] = x[0], atoms.y[p] = x[1], atoms.z[p] = x[2];
    atoms.label[p] = ((atom - start) << 33) + kStill;
  }

  // The position in the cell, its fractions, and the cells that were taken off.
  template <class T>
  Triple wrapped(const T* pos, int64_t atom, bool shifts, Triple& fraction, Atoms& atoms, Problems& bad) const {
    Triple x = {pos[0], pos[1], pos[2]};
    Whole whole{0, 0, 0};
    for (int k = 0; k < 3; ++k) {
      if (!lattice.periodic[k]) continue;
      const double cells = std::floor(dot(x, lattice.column[k]));
      if (std::abs(cells) <= kFar) whole[k] = static_cast<int64_t>(cells);
      else if (bad[kFarAway] < 0) bad[kFarAway] = atom;
    }
    const Triple s = lattice.moved(whole);
    for (int d = 0; d < 3; ++d) x[d] -= s[d];
    for (int k = 0; k < 3; ++k) {
      fraction[k] = lattice.any ? dot(x, lattice.column[k]) : x[k];
      if (shifts) atoms.wraps[3 * atom + k] = static_cast<int32_t>(whole[k]);
    }
    return x;
  }

  // The number of bins and their reach; from `low` on, `scale` bins in a unit of a fraction.
  void divide(const std::vector<Triple>& fraction, double r, Triple& low, Triple& scale, Problems& bad) {
    int64_t most = size() > kPlain ? size() : 1;
    for (int k = 0; k < 3; ++k) {
      double span = 1;
      if (!lattice.periodic[k]) {
        double high = -std::numeric_limits<double>::infinity();
        low[k] = -high;
        for (const Triple& f : fraction) low[k] = std::min(low[k], f[k]), high = std::max(high, f[k]);
        span = high - low[k];
      }
      const double wanted = span * lattice.height[k] / (r * kSlack);
      bins[k] = wanted > 1 ? static_cast<int64_t>(std::min<double>(wanted, most)) : 1;
      most /= bins[k];
      scale[k] = span > 0 ? bins[k] / span : 0;
      if (!lattice.periodic[k]) {
        reach[k] = 1;  // r is within one bin
        continue;
      }
      const double steps = std::ceil(r * kSlack * bins[k] / lattice.height[k]);
      if (steps <= static_cast<double>(kReach * bins[k])) reach[k] = static_cast<int64_t>(steps);
      else bad[kReachable] = start;
    }
    double visits = 1;
    for (int64_t n : reach) visits *= 2 * static_cast<double>(n) + 1;
    if (visits > kVisits) bad[kReachable] = start;
  }
};

}  // namespace ace::radius
