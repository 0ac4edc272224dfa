// dual_update: one pass over the gammas, everything of one gamma in registers.
#include "native.h"

namespace {

enum Row { kMGamma, kVGamma, kMSlack, kVSlack, kMMultiplier, kVMultiplier, kCorrection1, kCorrection2, kSkipped, kRows };

struct Rule {
  bool resilient, adam, dual_adam, repo_resilient, repo_scale, repo_clamp;
  double lr, dual_lr, slack_lr, rho, epsilon, augmentation, beta1, beta2, eps, dual_eps;
};

template <class T>
struct Gamma {
  T gamma, grad, multiplier, slack, moments[kRows];
};

// Takes g into its two averages m and v; returns where to step: Adam's quotient, or g itself.
template <class T>
T direction(bool adam, T g, T& m, T& v, const Gamma<T>& x, const Rule& r, double eps) {
  m = T(r.beta1) * m + T(1 - r.beta1) * g;
  v = T(r.beta2) * v + T(1 - r.beta2) * g * g;
  return adam ? m / x.moments[kCorrection1] / (std::sqrt(v / x.moments[kCorrection2]) + T(eps)) : g;
}

template <class T>
void step(Gamma<T>& x, const Rule& r, T scale) {
  const bool banded = r.resilient || r.epsilon > 0;
  const T slack = r.resilient ? x.slack : T(0);
  const T violation = banded ? std::abs(x.gamma) - T(r.epsilon) - slack : x.gamma;
  const T sign = banded ? T(x.gamma > 0) - T(x.gamma < 0) : T(1);
  T push = scale * x.multiplier + T(2 * r.augmentation) * violation, pull = 0, ascent = violation;
  if (r.repo_resilient) {
    pull = T(r.rho) * slack - push - violation + slack;
    push -= slack;
    ascent -= slack;
  } else {
    if (banded) push = std::max(push, T(0));
    if (r.resilient) pull = T(r.rho) * slack - push;
  }
  T* const a = x.moments;
  a[kCorrection1] = T(r.beta1) * a[kCorrection1] + T(1 - r.beta1);
  a[kCorrection2] = T(r.beta2) * a[kCorrection2] + T(1 - r.beta2);
  const T g = x.grad + push * sign;
  x.gamma -= T(r.lr) * direction(r.adam, g, a[kMGamma], a[kVGamma], x, r, r.eps);
  const T step_slack = direction(r.adam, pull, a[kMSlack], a[kVSlack], x, r, r.eps);
  if (r.resilient) x.slack -= T(r.slack_lr) * step_slack;
  x.multiplier -= T(r.dual_lr) * direction(r.dual_adam, -ascent, a[kMMultiplier], a[kVMultiplier], x, r, r.dual_eps);
  if (banded || r.repo_clamp) x.multiplier = std::max(x.multiplier, T(0));
}

}  // namespace

static std::tuple<ace::Tensor, ace::Tensor, ace::Tensor, ace::Tensor> dual_update(
    ace::Tensor gamma_, ace::Tensor grad_, ace::Tensor multiplier_, ace::Tensor slack_, ace::Tensor moments_,
    bool resilient, bool adam, bool dual_adam, bool repo_resilient, bool repo_scale, bool repo_clamp, double lr,
    double dual_lr, double slack_lr, double rho, double epsilon, double augmentation, double beta1, double beta2,
    double eps, double dual_eps) {
  using namespace ace;
  const Rule rule{resilient, adam, dual_adam, repo_resilient, repo_scale, repo_clamp, lr, dual_lr,
                  slack_lr, rho, epsilon, augmentation, beta1, beta2, eps, dual_eps};
  const Tensor gamma = dense(gamma_), grad = dense(grad_), multiplier = dense(multiplier_), slack = dense(slack_);
  const Tensor moments = dense(moments_);
  const int64_t n = gamma.size(0);  // gamma, grad, multiplier, slack [n], moments [9, n]
  Tensor new_gamma = empty(gamma, {n}), new_multiplier = empty(gamma, {n}), new_slack = empty(gamma, {n});
  Tensor new_moments = empty(gamma, {kRows, n});
  dispatch(gamma, [&]<class T>() {
    const T scale = repo_scale && n ? T(1.0 / n) : T(1);
    const T *g0 = in<T>(gamma), *g1 = in<T>(grad), *g2 = in<T>(multiplier), *g3 = in<T>(slack), *g4 = in<T>(moments);
    T *o0 = out<T>(new_gamma), *o1 = out<T>(new_multiplier), *o2 = out<T>(new_slack), *o3 = out<T>(new_moments);
    parallel(n, 2048, [&](int64_t i) {
      Gamma<T> old{g0[i], g1[i], g2[i], g3[i], {}};
      for (int64_t row = 0; row < kRows; ++row) old.moments[row] = g4[row * n + i];
      Gamma<T> next = old;
      step(next, rule, scale);
      // A gradient that is not finite, or whose square is not, would stay in the moments.
      const bool sound = std::isfinite(old.grad * old.grad);
      if (!sound) next = old, next.moments[kSkipped] += 1;
      o0[i] = next.gamma, o1[i] = next.multiplier, o2[i] = next.slack;
      for (int64_t row = 0; row < kRows; ++row) o3[row * n + i] = next.moments[row];
    });
  });
  return {new_gamma, new_multiplier, new_slack, new_moments};
}

STABLE_TORCH_LIBRARY_FRAGMENT(ace_fast_native, m) {
  m.def("dual_update(Tensor gamma, Tensor grad, Tensor multiplier, Tensor slack, Tensor moments, bool resilient, "
        "bool adam, bool dual_adam, bool repo_resilient, bool repo_scale, bool repo_clamp, float lr, float dual_lr, "
        "float slack_lr, float rho, float epsilon, float augmentation, float beta1, float beta2, float eps, "
        "float dual_eps) -> (Tensor, Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(ace_fast_native, CPU, m) {
  m.impl("dual_update", TORCH_BOX(&dual_update));
}
