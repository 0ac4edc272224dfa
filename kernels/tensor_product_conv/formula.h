// Which pairs of components a path of degrees (l1, l2, l3) couples, known to the compiler.
#pragma once

namespace ace::conv {

constexpr int kMaxDegree = 3;  // paths of no higher degree have code of their own

// Whether some j has C[i, j, k] != 0 for real spherical harmonics: the orders add up (m1 +- m2 +- m3 = 0), and the
// number of sines (negative orders) is even where l1 + l2 + l3 is, else odd. A few such coefficients are zero too.
constexpr bool couples(int l1, int l2, int l3, int i, int k) {
  const int m1 = i < l1 ? l1 - i : i - l1, m3 = k < l3 ? l3 - k : k - l3;
  const bool sine = ((i < l1) + (k < l3) + l1 + l2 + l3) % 2;
  const int sum = m1 + m3, difference = m1 > m3 ? m1 - m3 : m3 - m1;
  return (sum <= l2 && (sum > 0 || !sine)) || (difference <= l2 && (difference > 0 || !sine));
}

constexpr bool triangle(int l1, int l2, int l3) { return l3 <= l1 + l2 && l1 <= l2 + l3 && l2 <= l1 + l3; }

// The coupled pairs, numbered by k, then i: slot[i][k], -1 where (i, k) is none.
template <int L1, int L2, int L3>
struct Pattern {
  static constexpr int d1 = 2 * L1 + 1, d3 = 2 * L3 + 1;
  int slot[d1][d3] = {}, count = 0;
  constexpr Pattern() {
    for (int k = 0; k < d3; ++k)
      for (int i = 0; i < d1; ++i) slot[i][k] = couples(L1, L2, L3, i, k) ? count++ : -1;
  }
};

template <int L1, int L2, int L3>
constexpr Pattern<L1, L2, L3> kPattern{};

}  // namespace ace::conv
