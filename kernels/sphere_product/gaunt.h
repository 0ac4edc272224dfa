// The product of two fields of degree L kept to degree L, without a list: which of its terms are not zero is known when
// this is compiled, so the terms are one run of multiply-adds between registers.
#pragma once

#include "sphere.h"

#include <array>

namespace ace::sphere {

constexpr int kSums = kVectorBytes == 64 ? 25 : 10;  // vectors that stay in registers beside the factors of a pair

// Forms x here and now. Without this the compiler puts off each sum to its end, and all products of pairs, which are in
// several sums, go to the stack until then.
template <class T>
[[gnu::always_inline]] inline void keep([[maybe_unused]] Vec<T>& x) {
#if defined(__x86_64__)
  asm("" : "+v"(x));
#elif defined(__aarch64__)
  asm("" : "+w"(x));
#endif
}

// The integrals of three harmonics of degrees 0..L that the rules of selection leave, some of which are zero
// nevertheless. They are symmetric: one weight for i, j, k in any order.
template <int L>
struct Integrals {
  static constexpr int dim = (L + 1) * (L + 1);

  struct Term {
    uint8_t i, j, k;
    int16_t weight;
  };

  struct Weights {
    int16_t of[dim][dim][dim] = {};  // 1 + which, 0 for none
    int count = 0, terms = 0, pairs = 0;  // different weights; ordered i, j, k; those with i >= j
    int parities[dim] = {};
  };

  static constexpr Weights make() {
    int l[dim] = {}, m[dim] = {};
    for (int n = 0, i = 0; n <= L; ++n)
      for (int order = -n; order <= n; ++order, ++i) l[i] = n, m[i] = order;
    Weights w;
    for (int i = 0; i < dim; ++i) w.parities[i] = parity(l[i], m[i]);
    for (int i = 0; i < dim; ++i)
      for (int j = 0; j <= i; ++j)
        for (int k = 0; k <= j; ++k) {
          const int a = m[i] < 0 ? -m[i] : m[i], b = m[j] < 0 ? -m[j] : m[j], c = m[k] < 0 ? -m[k] : m[k];
          if (l[i] > l[j] + l[k] || w.parities[i] ^ w.parities[j] ^ w.parities[k]) continue;
          if (a != b + c && b != a + c && c != a + b) continue;
          const int16_t which = ++w.count;
          for (int16_t* to : {&w.of[i][j][k], &w.of[i][k][j], &w.of[j][i][k], &w.of[j][k][i], &w.of[k][i][j],
                              &w.of[k][j][i]}) *to = which;
        }
    for (int i = 0; i < dim; ++i)
      for (int j = 0; j < dim; ++j)
        for (int k = 0; k < dim; ++k)
          if (w.of[i][j][k]) ++w.terms, w.pairs += i >= j;
    return w;
  }
  static constexpr Weights weights = make();

  // Into how many kinds the components fall by parity, so that no kind has more than kSums. Each pair adds to one kind.
  static constexpr int split() {
    for (int kinds = 1; kinds < kMirrors; kinds *= 2) {
      int members[kMirrors] = {}, most = 0;
      for (int parities : weights.parities) ++members[parities % kinds];
      for (int some : members) most = some > most ? some : most;
      if (most <= kSums) return kinds;
    }
    return kMirrors;
  }

  // The terms, all of them or those with i >= j, in the order of k's kind, i, j, k.
  template <int count>
  static constexpr std::array<Term, count> list(bool all, int kinds) {
    std::array<Term, count> terms{};
    for (int kind = 0, n = 0; kind < kinds; ++kind)
      for (int i = 0; i < dim; ++i)
        for (int j = 0; j < (all ? dim : i + 1); ++j)
          for (int k = 0; k < dim; ++k)
            if (const int16_t which = weights.of[i][j][k]; which && weights.parities[k] % kinds == kind)
              terms[n++] = {uint8_t(i), uint8_t(j), uint8_t(k), int16_t(which - 1)};
    return terms;
  }
  static constexpr auto terms = list<weights.terms>(true, 1);
  static constexpr auto pairs = list<weights.pairs>(false, split());
};

// z_k = sum over i >= j of (x_i y_j + x_j y_i) sum over k of w_ijk, of a vector of columns, [dim][lanes] each.
template <class T, int L>
void multiply(const T* x, const T* y, const T* w, T* z) {
  constexpr auto& terms = Integrals<L>::pairs;
  constexpr int V = lanes<T>, dim = Integrals<L>::dim;
  Vec<T> product{}, sum[dim];
  for (int k = 0; k < dim; ++k) sum[k] = Vec<T>{};
  const auto add = [&]<int e>(std::integral_constant<int, e>) __attribute__((always_inline)) {
    constexpr auto term = terms[e];
    constexpr int i = term.i, j = term.j, before = e ? e - 1 : 0;
    if constexpr (e == 0 || terms[before].i != i || terms[before].j != j) {
      product = load(x + i * V) * load(y + j * V);
      if constexpr (i != j) product += load(x + j * V) * load(y + i * V);
    }
    sum[term.k] += product * w[term.weight];
    keep<T>(sum[term.k]);
  };
  [&]<int... e>(std::integer_sequence<int, e...>) __attribute__((always_inline)) {
    (add(std::integral_constant<int, e>{}), ...);
  }(std::make_integer_sequence<int, terms.size()>{});
  for (int k = 0; k < dim; ++k) store(z + k * V, sum[k]);
}

// One that is compiled. Its form is symmetric, so that it is its own gradient with respect to each of the three.
template <class T>
class Gaunt {
 public:
  // From a table's list of terms, as in sparse.h; none where they are not those of such a product.
  static std::optional<Gaunt> of(const double* table, const std::vector<Slot>& slots, int64_t count) {
    switch (slots[0].degree) {
      case 1: return of_degree<1>(table, slots, count);
      case 2: return of_degree<2>(table, slots, count);
      case 3: return of_degree<3>(table, slots, count);
      case 4: return of_degree<4>(table, slots, count);
      case 5: return of_degree<5>(table, slots, count);
      default: return {};
    }
  }

  // The gradient [vectors][dim][lanes] with respect to one slot, from the two others.
  void run(const T* a, const T* b, int64_t vectors, T* y) const { run_(weights_.data(), a, b, vectors, y); }

 private:
  void (*run_)(const T*, const T*, const T*, int64_t, T*);
  std::vector<T> weights_;

  template <int L>
  static std::optional<Gaunt> of_degree(const double* table, const std::vector<Slot>& slots, int64_t count) {
    using Known = Integrals<L>;
    for (const Slot& slot : slots)
      if (slot.degree != L) return {};
    std::vector<double> found(Known::weights.count, 0.0);
    std::vector<char> seen(found.size());
    const double *i = table + slots[0].offset, *j = table + slots[1].offset, *k = table + slots[2].offset;
    int64_t e = 0;
    for (const auto& term : Known::terms) {  // sorted, as the table is
      const bool listed = e < count && i[e] == term.i && j[e] == term.j && k[e] == term.k;
      const double value = listed ? i[count + e] * j[count + e] * k[count + e] : 0;
      double& weight = found[term.weight];
      if (seen[term.weight] && std::abs(value - weight) > 1e-12 * std::abs(value)) return {};
      if (!seen[term.weight]) weight = value;
      seen[term.weight] = 1;
      e += listed;
    }
    if (e < count) return {};
    Gaunt known;
    known.weights_.assign(found.begin(), found.end());
    known.run_ = [](const T* w, const T* a, const T* b, int64_t vectors, T* y) {
      constexpr int64_t step = Known::dim * lanes<T>;
      for (int64_t v = 0; v < vectors; ++v) multiply<T, L>(a + v * step, b + v * step, w, y + v * step);
    };
    return known;
  }
};

}  // namespace ace::sphere
