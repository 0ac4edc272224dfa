/* Multiply-adds as fast as this processor forms them: independent sums in registers, nothing loaded or stored.
   Compiled and called by bench/fma.py. */

#if defined(__AVX512F__)
#define BYTES 64
#define SUMS 24
#elif defined(__AVX__)
#define BYTES 32
#define SUMS 12
#else
#define BYTES 16
#define SUMS 12
#endif

/* bytes of sums that one round goes over, a multiply-add each */
int bytes_a_round(void) { return BYTES * SUMS; }

#define PEAK(T)                                                    \
  typedef T T##_vector __attribute__((vector_size(BYTES)));        \
  T peak_##T(long rounds, T factor, T term) {                      \
    T##_vector x[SUMS], a = {0}, b = {0};                          \
    a += factor;                                                   \
    b += term;                                                     \
    _Pragma("GCC unroll 24") for (int i = 0; i < SUMS; ++i) {      \
      x[i] = a * (T)i;                                             \
    }                                                              \
    for (long r = 0; r < rounds; ++r) {                            \
      _Pragma("GCC unroll 24") for (int i = 0; i < SUMS; ++i) {    \
        x[i] = x[i] * a + b;                                       \
      }                                                            \
    }                                                              \
    T##_vector sum = x[0];                                         \
    _Pragma("GCC unroll 24") for (int i = 1; i < SUMS; ++i) {      \
      sum += x[i];                                                 \
    }                                                              \
    T total = 0;                                                   \
    for (unsigned j = 0; j < BYTES / sizeof(T); ++j) {             \
      total += sum[j];                                             \
    }                                                              \
    return total;                                                  \
  }

PEAK(float)
PEAK(double)
