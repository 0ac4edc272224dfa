// Signs of a leaky ReLU, one byte an element, by vectors: of random numbers each is half a mispredicted branch.
#pragma once

#include "vector_math.h"

namespace ace::spectral {

template <class T> using Signs = Vec<typename Bits<T>::type>;  // -1 or 0 in each lane

template <class T>
struct SignBytes {
  typedef int8_t type __attribute__((vector_size(lanes<T>)));
};

// The first `count` lanes.
template <class T>
inline void store_signs(bool* p, Signs<T> signs, int64_t count) {
  const auto bytes = __builtin_convertvector(signs, typename SignBytes<T>::type) & 1;
  std::memcpy(p, &bytes, count >= lanes<T> ? lanes<T> : count);
}

template <class T>
inline Signs<T> load_signs(const bool* p, int64_t count) {
  typename SignBytes<T>::type bytes{};
  std::memcpy(&bytes, p, count >= lanes<T> ? lanes<T> : count);
  return __builtin_convertvector(bytes, Signs<T>) != 0;
}

}  // namespace ace::spectral
