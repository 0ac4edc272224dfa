// The second derivative of a path that mixes channels, on one block of rows.
#pragma once

#include "block.h"

namespace ace::product {

// With m of side 2, c and n the cotangents of x and m, W' that of W, and C(x, m) the contraction, C^T its transposed:
//     t = W g, t' = W' g:   g_x += C^T(t, n) + C^T(t', m),   g_m += <c, t> + <x, t'>
//     s = C(c, m) + C(x, n), s' = C(x, m):   g_W = <s, g>,   g_g += W s + W' s'
// so the terms share their products with weights: three where one after the other takes six. With channels first, the
// contraction stands between g and the weights, and only <c W + x W', C^T g> is shared.
template <class T>
void Block<T>::second(const Path& p, const Weights<T>& weights, const Second& other, WeightSums<T> sums) {
  const bool need_x = p.swapped ? other.need_x2 : other.need_x1, need_m = p.swapped ? other.need_x1 : other.need_x2;
  const T *c_x = p.swapped ? other.c2 : other.c1, *n = p.swapped ? other.c1 : other.c2, *m = p.swapped ? x1 : x2;
  const T *x = (p.swapped ? x2 : x1) + p.o1 * kRows, *c = c_x ? c_x + p.o1 * kRows : nullptr, *g = y + p.o3 * kRows;
  T *g_x = (p.swapped ? g_x2 : g_x1) + p.o1 * kRows, *g_g = other.product ? other.product + p.o3 * kRows : nullptr;
  const Weights<T>* more = other.weights && p.weight >= 0 ? &*other.weights : nullptr;
  const bool need_weight = sums && p.weight >= 0, equal = p.meet == Meet::equal;
  T *k = coupling, *l = other.coupling, *t2 = other.t, *s2 = other.s;

  const auto first = [&](const Group& group) {  // channels first; t of the inputs' width, s that of g contracted
    const int64_t at = group.first * p.d1 * kRows;
    if (need_x || need_weight) contract<true>(p, k, p.W, g, s, false);
    if (n && (need_x || need_weight)) contract<true>(p, l, p.W, g, s2, false);
    if (need_x && n) unmix(p, group, weights, s2, g_x + at, true);
    if (need_x && more) unmix(p, group, *more, s, g_x + at, true);
    if (need_weight && c) g_mix(p, group, c + at, s, sums);
    if (need_weight && n) g_mix(p, group, x + at, s2, c ? sums.added() : sums);
    if (!need_m && !g_g) return;
    if (c) mix(p, group, weights, c + at, t, false);
    if (more) mix(p, group, *more, x + at, t, c);
    if (need_m && (c || more)) g_couple(p, group.b, p.W, t, g);
    if (g_g && (c || more)) contract<false>(p, k, p.W, t, g_g, true);
    if (!g_g || !n) return;
    mix(p, group, weights, x + at, t, false);
    contract<false>(p, l, p.W, t, g_g, true);
  };
  const auto unmixed = [&](const Group& group) {
    if ((need_x && n) || (need_m && c)) unmix(p, group, weights, g, t, false);
    if ((need_x || need_m) && more) unmix(p, group, *more, g, t2, false);
  };
  const auto contracted = [&](const Group& group) {
    const int64_t at = (equal ? group.b : group.first) * p.d1 * kRows, to = equal ? group.b * p.d3 * kRows : 0;
    if (need_x && n) contract<true>(p, l, group.count, t + to, g_x + at, true);
    if (need_x && more) contract<true>(p, k, group.count, t2 + to, g_x + at, true);
    if (need_m && c) g_couple(p, group.b, group.count, c + at, t + to);
    if (need_m && more) g_couple(p, group.b, group.count, x + at, t2 + to);
    if (c && (need_weight || g_g)) contract<false>(p, k, group.count, c + at, s + to, false);
    if (n && (need_weight || g_g)) contract<false>(p, l, group.count, x + at, s + to, c);
    if (more && g_g) contract<false>(p, k, group.count, x + at, s2 + to, false);
  };
  const auto mixed = [&](const Group& group) {
    if (need_weight && (c || n)) g_mix(p, group, s, g, sums);
    if (g_g && (c || n)) mix(p, group, weights, s, g_g, true);
    if (g_g && more) mix(p, group, *more, s2, g_g, true);
  };

  if (equal) unmixed(everything(p));
  p.groups([&](const Group& group) {
    couple(p, group.b, m, k);
    if (n) couple(p, group.b, n, l);
    if (p.channels_first) return first(group);
    if (!equal) unmixed(group);
    contracted(group);
    if (!equal) mixed(group);
  });
  if (equal) mixed(everything(p));
}

}  // namespace ace::product
