// A product of two whose form is a short list of terms: sum over e of v_e t0[i_e] t1[j_e] t2[k_e].
#pragma once

#include "sphere.h"

namespace ace::sphere {

// The terms sorted by their component in one slot, for the gradient with respect to it.
template <class T>
class Sparse {
 public:
  // table: of every slot the components of `count` terms, and then the terms' coefficients in it.
  Sparse(const double* table, const std::vector<Slot>& slots, int64_t count, int wanted)
      : dim_(slots[wanted].dim()), starts_(dim_ + 1) {
    const int other[2] = {wanted == 0 ? 1 : 0, wanted == 2 ? 1 : 2};
    const auto component = [&](int slot, int64_t e) { return static_cast<int64_t>(table[slots[slot].offset + e]); };
    for (int64_t i = 0; i < dim_; ++i) {
      for (int64_t e = 0; e < count; ++e) {
        if (component(wanted, e) != i) continue;
        double value = 1;
        for (const Slot& slot : slots) value *= table[slot.offset + count + e];
        terms_.push_back({component(other[0], e), component(other[1], e), static_cast<T>(value)});
      }
      starts_[i + 1] = terms_.size();
    }
  }

  // y [dim][n] from the two other slots' columns, in the order of their slots.
  void run(const T* a, const T* b, int64_t n, T* y) const {
    constexpr int64_t L = lanes<T>, V = 4;
    for (int64_t i = 0; i < dim_; ++i) {
      int64_t c = 0;
      for (; c + V * L <= n; c += V * L) columns<V>(i, a + c, b + c, n, y + i * n + c);
      for (; c < n; c += L) columns<1>(i, a + c, b + c, n, y + i * n + c);
    }
  }

 private:
  struct Term { int64_t a, b; T value; };
  int64_t dim_;
  std::vector<int64_t> starts_;
  std::vector<Term> terms_;

  template <int V>
  void columns(int64_t i, const T* a, const T* b, int64_t n, T* y) const {
    Vec<T> sum[V];
    for (int v = 0; v < V; ++v) sum[v] = Vec<T>{};
    for (int64_t e = starts_[i]; e < starts_[i + 1]; ++e) {
      const T *p = a + terms_[e].a * n, *q = b + terms_[e].b * n;
      const T value = terms_[e].value;
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) sum[v] += (load(p + v * lanes<T>) * load(q + v * lanes<T>)) * value;
    }
    for (int v = 0; v < V; ++v) store(y + v * lanes<T>, sum[v]);
  }
};

}  // namespace ace::sphere
